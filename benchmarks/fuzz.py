"""Fuzz what reads data and configurations: no crash but the named errors, no hang, no memory without bound.

    python -m benchmarks.fuzz [TARGET ...] [--minutes 10] [--seed N]

Hypothesis makes inputs up, most of them by spoiling good ones, until the time is over; each target gets its
share. A find is shrunk and printed, and the exit status is 1. Whatever is accepted is held against what every
later step relies on: text that can be written, ids that are unique, splits that share no prompt, and a
configuration that reads back as it was written.
"""

import argparse
import contextlib
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hypothesis import HealthCheck, Phase, given, reject, seed, settings
from hypothesis import strategies as st

from automixalign.config.data import SplitSpec, TaskSpec
from automixalign.config.experiment import Experiment, parse_experiment
from automixalign.config.file import dump_yaml, override, parse_yaml
from automixalign.data.prepare import check_rendering, read_pairs
from automixalign.data.split import split_tasks
from automixalign.preflight.validate import plan_experiment
from automixalign.scoring.verifiers.registry import registered_verifiers
from automixalign.system.errors import AutoMixAlignError, DataError
from benchmarks import fuzz_inputs as inputs
from benchmarks.faults._refusals import experiment
from benchmarks.faults.rows import GOOD, lines

_SECONDS = 20
"""An input that takes longer hangs."""
_MEMORY = 2 << 30
"""What an input may take beyond what the process had before."""
_ROUND = 200

OFFLINE = {
    "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
    "AWS_ACCESS_KEY_ID": "fuzz",
    "AWS_SECRET_ACCESS_KEY": "fuzz-fuzz",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",
}
"""An S3 server that refuses every connection at once."""


class HangError(Exception):
    """An input took too long."""


@cache
def _tokenizer() -> Any:
    from automixalign.quickstart.tiny_model import build_tokenizer

    return build_tokenizer()


def _check_source(name: str, content: bytes) -> None:
    Path(name).write_bytes(content)
    with contextlib.suppress(DataError):
        read_pairs(TaskSpec(name="own", source=name, verifier="number"), 0, registered_verifiers())
    pairs, counts = read_pairs(TaskSpec(name="own", source=name), 0, registered_verifiers())
    listed = list(pairs)
    assert len({pair.pair_id for pair in listed}) == len(listed) == len(pairs) <= counts["read"]
    for pair in listed:
        written = json.dumps([pair.prompt, pair.chosen, pair.rejected, pair.answer], ensure_ascii=False)
        assert "\\u0000" not in written.encode().decode()
    check_rendering("own", pairs, _tokenizer(), 64)
    tasks = {"own": listed, "other": listed[1:]}
    ranks = {"own": pairs.ranks, "other": pairs.ranks[1:]}
    labels = split_tasks({task: np.sort(each) for task, each in ranks.items()}, SplitSpec(test=0.3))
    sides: dict[str, set[int]] = {}
    for task, part in tasks.items():
        for place, label in zip(np.argsort(ranks[task], kind="stable"), labels[task], strict=True):
            sides.setdefault(part[place].prompt_key, set()).add(int(label))
    assert all(len(found) == 1 for found in sides.values())


def _check_rows(content: bytes) -> None:
    _check_source("own.jsonl", content)


def _check_parquet(content: bytes) -> None:
    _check_source("own.parquet", content)


def _check_experiment(found: Experiment) -> None:
    """Write it, read it again, and plan it; a source outside the folder is not followed."""
    written = dump_yaml(found)
    written.encode()
    assert parse_experiment(parse_yaml(written, "the dump"), "the dump") == found
    here = Path.cwd()
    for source in [found.base_model.source, *(task.source for task in found.tasks)]:
        with contextlib.suppress(OSError):
            if Path(source).exists() and here not in Path(source).resolve().parents:
                reject()
    if found.output is not None and not (here / found.output.to).resolve().is_relative_to(here):
        reject()
    for output in plan_experiment(found).as_outputs():
        assert isinstance(output, str | list)


def _check_config(content: str) -> None:
    data = parse_yaml(content, "fuzz")
    if isinstance(data, dict):
        _check_experiment(parse_experiment(data, "fuzz"))


def _check_overrides(options: list[tuple[str, str]]) -> None:
    data = parse_yaml(experiment(), "fuzz")
    for key, value in options:
        override(data, key, parse_yaml(value, f"--set {key}"))
    _check_experiment(parse_experiment(data, "fuzz"))


def _check_verifiers(texts: tuple[str, str]) -> None:
    for name, passes in registered_verifiers().items():
        assert isinstance(passes(*texts), bool)
        # A right answer among nothing else always passes; `number` asks for one.
        assert passes(texts[1], texts[1]) or name == "number"


class Target(NamedTuple):
    """Inputs, and what they are given to."""

    inputs: st.SearchStrategy[Any]
    check: Callable[[Any], None]


TARGETS = {
    "rows": Target(st.one_of(inputs.jsonl, inputs.noisy_bytes), _check_rows),
    "parquet": Target(inputs.parquet(), _check_parquet),
    "config": Target(inputs.configurations, _check_config),
    "overrides": Target(inputs.overrides, _check_overrides),
    "verifiers": Target(inputs.answers, _check_verifiers),
}


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Not without end."""

    def end(*_: object) -> None:
        raise HangError(f"more than {_SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, _SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """In a folder of its own, where no server can be reached."""
    with tempfile.TemporaryDirectory(prefix="ama-fuzz-") as folder, contextlib.chdir(folder):
        Path("own.jsonl").write_bytes(lines(GOOD))
        before = dict(os.environ)
        os.environ.update(OFFLINE)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def tried(target: Target, given_: Any, seen: Counter[str]) -> None:
    """Give one input to its target: a named error is all it may end in."""
    with bounded():
        try:
            target.check(given_)
        except AutoMixAlignError as error:
            assert len(str(error)) < 10_000, "a flood for a message"
            seen["refused"] += 1
        else:
            seen["accepted"] += 1


def fuzz(target: Target, number: int, examples: int, seen: Counter[str]) -> None:
    """Some inputs for a target, drawn by `number`; whatever is wrong is raised, shrunk."""

    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @seed(number)
    @given(target.inputs)
    def one(given_: Any) -> None:
        tried(target, given_, seen)

    one()


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _MEMORY, resource.RLIM_INFINITY))


def main() -> int:
    """Fuzz the targets in turn until the time is over; print what was tried and what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all by default")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a find may be no text
    names = options.targets or list(TARGETS)
    if unknown := set(names) - TARGETS.keys():
        parser.error(f"there is no target {', '.join(unknown)}; there are: {', '.join(TARGETS)}")
    _tokenizer()  # with all that it imports
    _limit_memory()
    seen = {name: Counter[str]() for name in names}
    until, number, finds = time.monotonic() + 60 * options.minutes, options.seed, 0
    with aside():
        while time.monotonic() < until:
            for name in names:
                try:
                    fuzz(TARGETS[name], number, _ROUND, seen[name])
                except Exception as error:  # a find
                    finds += 1
                    print(f"--- {name}, --seed {number}\n{''.join(traceback.format_exception(error))}")
            number += 1
    for name, counts in seen.items():
        print(f"{name}: {counts['accepted']} accepted, {counts['refused']} refused")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"seeds {options.seed} to {number - 1}; {finds} finds; {peak} MiB at most")
    return int(finds > 0)


if __name__ == "__main__":
    sys.exit(main())
