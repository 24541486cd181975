"""`pipelines/dag/backend.md` names exactly the constructs of the compiled pipelines.

The test reads the compiled documents of all experiments and of the quickstart. A construct has the name of its
key; a key inside it has both names, `secretAsEnv: optional`.
"""

import re
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.compiled import EXPERIMENTS, pipeline, read_documents

PIPELINES = Path(__file__).parents[2] / "pipelines"
LIST = PIPELINES / "dag" / "backend.md"
FRAME = frozenset(
    """
    args artifactType artifacts command componentRef components container dag dependentTasks deploymentSpec
    description executorLabel executors image inputs inputDefinitions kubernetes name outputs outputDefinitions
    parameters pipelineInfo platforms root schemaVersion sdkVersion taskInfo tasks
    """.split()  # noqa: SIM905  thirty names in three lines
)
"""Keys of every pipeline that contain or name constructs, but are not constructs."""
NAMES = frozenset(("artifacts", "components", "executors", "labels", "parameters", "tasks"))
"""The keys below these are our own names."""
KINDS = frozenset(("medium", "parameterType", "schemaTitle"))
"""Keys whose values are constructs: `schemaTitle: system.HTML`."""
NONE, NOT_FOUND = "none known", "not found"
"""Instead of a backend's version: no backend supports it, or the first version is unknown."""


def _keys(node: Any, head: str = "", inside: str = "") -> Iterator[str]:
    """The constructs in a part of a document, under the outermost of them."""
    if isinstance(node, list):
        yield from chain.from_iterable(_keys(item, head, inside) for item in node)
    elif isinstance(node, dict):
        for key, value in node.items():
            if inside in NAMES:
                yield from _keys(value, head)
            elif key in KINDS:
                yield from (key, f"{key}: {value}")
            elif key in FRAME:
                yield from _keys(value, head, key)
            else:
                yield from (head, f"{head}: {key}") if head else (key,)
                yield from _keys(value, head or key, key)


def _dags(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from (part["dag"] for part in (spec["root"], *spec["components"].values()) if "dag" in part)


def _definitions(component: dict[str, Any], owner: str) -> Iterator[str]:
    for side in ("input", "output"):
        yield from _keys(component.get(f"{side}Definitions", {}), f"{owner} {side}")


def _task(key: str, task: dict[str, Any]) -> Iterator[str]:
    """The constructs of a task: its keys, and combinations of them."""
    yield from _keys(task)
    sources = [str(source) for source in task.get("inputs", {}).get("artifacts", {}).values()]
    if len(set(sources)) < len(sources):
        yield "one artifact as two inputs"
    if task["taskInfo"]["name"] != key:
        yield "named loop" if "parameterIterator" in task else "named task"


def _constructs(spec: dict[str, Any], platform: dict[str, Any]) -> Iterator[str]:
    yield from _definitions(spec["root"], "pipeline")
    for component in spec["components"].values():
        yield from ["dag"] if "dag" in component else []
        yield from _definitions(component, "dag" if "dag" in component else "task")
    for dag in _dags(spec):
        yield from _keys(dag.get("outputs", {}))
        yield from chain.from_iterable(_task(key, task) for key, task in dag["tasks"].items())
    for part in (spec["deploymentSpec"], spec["pipelineInfo"], platform["platforms"]["kubernetes"]):
        yield from _keys(part)


@cache
def in_use() -> frozenset[str]:
    """The constructs of all pipelines."""
    quickstart = read_documents(PIPELINES / "automixalign.yaml")
    every = [quickstart, *(pipeline(name) for name in EXPERIMENTS)]
    return frozenset(chain.from_iterable(_constructs(*documents) for documents in every))


def named() -> dict[str, list[str]]:
    """Construct -> its row in the list: what it is, where used, since which SDK and backend, source."""
    rows = {}
    for line in LIST.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        head, *keys = re.findall("`([^`]+)`", cells[0]) or [""]
        if line.startswith("|") and head:
            rows |= dict.fromkeys((head, *(f"{head}: {key}" for key in keys)), cells)
    return rows


def _version(text: str) -> tuple[int, ...]:
    """`2.14.0, in loops` -> (2, 14, 0)."""
    return tuple(map(int, text.partition(",")[0].split(".")))


def test_the_list_names_every_construct_in_use() -> None:
    assert not in_use() - named().keys(), f"find the first server that supports it, and add it to {LIST.name}"


def test_the_list_names_no_construct_that_is_not_in_use() -> None:
    assert not named().keys() - in_use(), f"remove it from {LIST.name}"


def test_each_row_is_complete() -> None:
    for what, *cells in named().values():
        assert len(cells) == 4 and all(cells), what


def test_the_required_server_is_the_newest_that_a_construct_needs() -> None:
    required = re.search(r"\*\*KFP (\S+)\*\*", LIST.read_text())
    assert required, "the list says which server it requires"
    since = [cells[3] for cells in named().values() if not cells[3].startswith((NONE, NOT_FOUND))]
    assert _version(required[1]) == max(map(_version, since))


def test_some_server_supports_every_construct_in_use() -> None:
    assert not [cells[0] for cells in named().values() if cells[3].startswith(NONE)]


@pytest.mark.parametrize("name", ["one-gpu", "eight-gpus"])
def test_a_stage_that_fails_at_its_time_limit_is_retried(name: str) -> None:
    spec, platform = pipeline(name)
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    tried_again = [task for dag in _dags(spec) for task in dag["tasks"].values() if "retryPolicy" in task]
    for task in tried_again:
        executor = spec["components"][task["componentRef"]["name"]]["executorLabel"]
        tries = task["retryPolicy"]["maxRetryCount"] + 1
        allowed = int(task["retryPolicy"]["backoffMaxDuration"].removesuffix("s"))
        assert allowed >= tries * int(pods[executor]["activeDeadlineSeconds"]), executor
