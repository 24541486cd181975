"""The examples in the help of every command: all are parsed, and the quick ones run."""

import io
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from automixalign.report import runs
from automixalign.steps.events import EVENTS_FILE, log_name
from automixalign.storage import files
from pipelines import cli
from pipelines.local.mlflow_sender import spool_folder
from tests.pipeline.conftest import Ama
from tests.release.small_run import write_run

GROUP: Any = typer.main.get_command(cli.app)
RUN = "runs/quickstart-20250101-120000"
EXAMPLES = [
    match["words"].split(" ...")[0]
    for help_text in (GROUP.help, *(command.help for command in GROUP.commands.values()))
    for match in re.finditer(r"^ *(?:[A-Z_]+=\S+ )?ama (?P<words>.*)$", help_text, re.MULTILINE)
]
QUICK = (
    "init --task helpful=helpful.jsonl --base-model tiny --output tiny.yaml",
    "presets",
    "presets smollm2",
    "schema --output configuration.schema.json",
    "validate --preset quickstart --set training.beta=0.2",
    "validate --config my.yaml",
    "data --config my.yaml --task helpful --rows 5",
    "compile --config my.yaml --output my-pipeline.yaml",
    "submit --preset quickstart --host http://localhost:8888 --dry-run",
    f"export {RUN} --to assistant",
    "runs",
    f"status {RUN}",
    f"logs {RUN}",
    f"logs {RUN} train_generalist-ama-r --follow",
    "diff runs/seed-0 runs/seed-1",
    f"publish {RUN} --to published --replace",
    f"sync {RUN}",
    f"chat {RUN}",
    f"generate {RUN} ama-r --input prompts.jsonl --output answers.jsonl",
)
"""At least one of each command, but of `run` and `report`: test_run.py runs them."""


@pytest.fixture(scope="module")
def small_run(
    base_model: Path, two_tasks: Path, two_reference_logps: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("examples") / "run"
    write_run(folder, base_model, two_tasks, two_reference_logps, methods=["uniform", "ama-r"])
    (folder / "logs").mkdir()
    stages = [{"stage": "train_generalist", "name": "ama-r"}, {"stage": "compare", "name": ""}]
    events = [stage | {"time": 0.0, "event": kind} for stage in stages for kind in ("started", "finished")]
    files.write_jsonl(folder / "logs" / EVENTS_FILE, events)
    for stage in stages:
        (folder / "logs" / log_name(**stage)).write_text("loss 0.5\n")
    (folder / runs.PAGE).write_text("a page")
    files.write_json(
        folder / runs.FACTS, files.read_json(folder / runs.FACTS) | {"name": "quickstart", "verdict": ""}
    )
    spool_folder(folder).mkdir(parents=True)
    return folder


@pytest.fixture
def files_of_examples(
    tmp_path: Path, small_run: Path, experiment_data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """What the examples name, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / RUN).parent.mkdir()
    (tmp_path / RUN).symlink_to(small_run)
    for name in ("runs/seed-0", "runs/seed-1", "runs/seed-2"):
        (tmp_path / name).symlink_to(small_run)
    experiment_data["tasks"][0]["name"] = "helpful"
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(experiment_data))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "12+3="}\n')
    rows = [{"prompt": f"{number}+3=", "chosen": "a", "rejected": "b"} for number in range(30)]
    files.write_jsonl(tmp_path / "helpful.jsonl", rows)
    (tmp_path / "token").write_text("secret")
    monkeypatch.setattr(sys, "stdin", io.StringIO("12+3=\n"))
    yield


def test_every_command_has_an_example() -> None:
    assert {example.split()[0] for example in EXAMPLES} == set(GROUP.commands)


@pytest.mark.usefixtures("files_of_examples")
@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_parses(example: str) -> None:
    name, *words = shlex.split(example)
    GROUP.commands[name].make_context(name, words)


@pytest.mark.usefixtures("files_of_examples")
@pytest.mark.parametrize("example", QUICK)
def test_a_quick_example_runs(example: str, ama: Ama) -> None:
    assert example in EXAMPLES
    ended = ama(*shlex.split(example))
    assert ended.status == 0, ended.err
