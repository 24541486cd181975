"""Fuzz what reads data and configurations: only named errors, no hang, no flood of memory.

Hypothesis makes inputs up, most of them by damaging valid ones. An input that is accepted is checked for what
every later stage relies on. `--hypothesis-profile long` draws many inputs, `--hypothesis-seed` chooses them.
"""

import contextlib
import json
import resource
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from automixalign.config.data import DataSettings, TaskSpec, VerifierSpec
from automixalign.config.experiment import Experiment, parse_experiment
from automixalign.config.file import dump_yaml, override, parse_yaml
from automixalign.data.clean import Collector, Fate
from automixalign.data.read_task import open_task
from automixalign.data.split import split_tasks
from automixalign.data.task_pairs import check_rendering, read_candidates
from automixalign.preflight.validate import plan_experiment
from automixalign.quickstart.tiny_model import build_tokenizer
from automixalign.scoring.verifiers.registry import make_verifier
from automixalign.scoring.verifiers.verifier import Generated
from automixalign.system.errors import AutoMixAlignError, DataError
from tests.faults import fuzz_inputs as inputs
from tests.faults.command_line import experiment
from tests.faults.test_rows import GOOD, lines

_HANG_SECONDS = 20
_MEMORY_BYTES = 2 << 30
"""What an input may take beyond what the process uses before."""
_LONGEST_MESSAGE = 10_000


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def check_source(name: str, content: bytes) -> None:
    Path(name).write_bytes(content)
    spec = {"name": "own", "source": name}
    with (
        contextlib.suppress(DataError),
        open_task(TaskSpec.model_validate({**spec, "verifier": "number"}), 0, make_verifier) as reader,
    ):
        list(reader)
    with open_task(TaskSpec.model_validate(spec), 0, {}) as reader:
        candidates = read_candidates(reader, 0, Collector(0))
        listed = list(candidates.used_among(pair for _, pair in reader))
        assert len({pair.pair_id for pair in listed}) == len(listed) <= sum(reader.counts[0].values())
        for pair in listed:
            written = json.dumps(pair._asdict(), ensure_ascii=False)
            assert "\\u0000" not in written.encode().decode()
        settings = DataSettings.model_validate(
            {"seed": 0, "tasks": [spec], "split": {"test": 0.3}, "max_length": 64, "fingerprints": [""]}
        )
        check_rendering(reader, tokenizer(), settings)
    other = Collector(0)
    assert all([other.add(0, pair) for pair in listed[1:]])
    tasks = {"own": candidates, "other": other.finish()}
    numbers = np.flatnonzero(candidates.fates == Fate.USED)
    pairs = {"own": dict(zip(numbers, listed, strict=True)), "other": dict(enumerate(listed[1:]))}
    labels = split_tasks(tasks, settings.split)
    splits: dict[str, set[int]] = {}
    for task, of_number in pairs.items():
        for number, pair in of_number.items():
            splits.setdefault(pair.prompt_key, set()).add(int(labels[task][number]))
    assert all(len(labels_of_prompt) == 1 for labels_of_prompt in splits.values())


def check_experiment(experiment: Experiment) -> None:
    """Write it, read it again and plan it, unless it names a path outside the folder."""
    written = dump_yaml(experiment)
    written.encode()
    assert parse_experiment(parse_yaml(written, "the dump"), "the dump") == experiment
    folder = Path.cwd()
    paths = [source.path for task in experiment.tasks for source in task.sources]
    for source in [experiment.base_model.source, *paths, *(each.path for each in experiment.decontaminate)]:
        with contextlib.suppress(OSError):
            if Path(source).exists() and folder not in Path(source).resolve().parents:
                reject()
    if experiment.output is not None and not (folder / experiment.output.to).resolve().is_relative_to(folder):
        reject()
    for output in plan_experiment(experiment).as_outputs():
        assert isinstance(output, str | list)


def check_config(content: str) -> None:
    data = parse_yaml(content, "fuzz")
    if isinstance(data, dict):
        check_experiment(parse_experiment(data, "fuzz"))


def check_overrides(options: list[tuple[str, str]]) -> None:
    data = parse_experiment(parse_yaml(experiment(), "fuzz"), "fuzz").model_dump(mode="json")
    for key, value in options:
        override(data, key, parse_yaml(value, f"--set {key}"))
    check_experiment(parse_experiment(data, "fuzz"))


def check_verifiers(texts: tuple[str, str]) -> None:
    for name in ("exact", "contains", "number", "json"):
        verifier = make_verifier(VerifierSpec(name=name))
        assert isinstance(verifier.passes(Generated("", *texts, {})), bool)
        # An answer by itself always passes; `number` needs one that holds a number.
        itself = verifier.passes(Generated("", texts[1], texts[1], {}))
        assert itself or name in ("number", "json")


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """An input may take some seconds and some memory."""

    def interrupt(*_: object) -> None:
        raise TimeoutError(f"more than {_HANG_SECONDS} seconds")

    handler, limits = signal.signal(signal.SIGALRM, interrupt), resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _MEMORY_BYTES, limits[1]))
    signal.setitimer(signal.ITIMER_REAL, _HANG_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize(
    ("strategy", "check"),
    [
        pytest.param(inputs.jsonl | inputs.noisy_bytes, lambda it: check_source("own.jsonl", it), id="rows"),
        pytest.param(inputs.parquet(), lambda it: check_source("own.parquet", it), id="parquet"),
        pytest.param(inputs.configurations, check_config, id="config"),
        pytest.param(inputs.overrides, check_overrides, id="overrides"),
        pytest.param(inputs.answers, check_verifiers, id="verifiers"),
    ],
)
def test_fuzz(
    strategy: st.SearchStrategy[Any],
    check: Callable[[Any], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pytestconfig: pytest.Config,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.jsonl").write_bytes(lines(GOOD))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")  # refuses every connection at once
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "fuzz-fuzz")
    outcomes: Counter[str] = Counter()

    @settings(settings.get_profile(pytestconfig.getoption("--hypothesis-profile") or "short"))
    @given(strategy)
    def one(value: Any) -> None:
        with bounded():
            try:
                check(value)
            except AutoMixAlignError as error:
                assert len(str(error)) < _LONGEST_MESSAGE
                outcomes["refused"] += 1
            else:
                outcomes["accepted"] += 1

    one()
    assert outcomes.total() >= 100
    assert outcomes["accepted"], "only rejected inputs test little"
