"""The fault bench's outages, as far as they are quick; `python -m benchmarks.faults` has all of them."""

from pathlib import Path

import pytest

from benchmarks.faults import mlflow_outages, numbers, s3_outages
from benchmarks.faults.case import Case

SLOW = {
    "down at start of `ama run`",
    "slow: every answer waits",
    "silent: no answer comes",
    "a download falls silent",
    "cut twice in a single upload",
    "cut in a single upload",
    "cut twice in a download",
    "busy (503 SlowDown)",
    "silent twice",
    "down all the time",
    "killed in the middle",
    "killed at the end",
    "`ama run`, server down",
    "slow",
    "silent",
    "answers 500",
    "answers with a web page",
    "the SQLite store is locked",
    "the SQLite store is damaged",
    "`register`, answers 500",
    "answers are lost",
    "`ama run`, a specialist diverges",
    "base model models:/ with a NaN",
    "a specialist diverges, bf16",
    "a model evaluated on fewer pairs",
}
"""They take seconds each, and say little that another one does not."""

CASES = [*s3_outages.CASES, *mlflow_outages.CASES, *numbers.CASES]


def test_what_is_left_out_is_in_the_bench() -> None:
    assert {case.name for case in CASES} >= SLOW


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=f"{case.group}: {case.name}") for case in CASES if case.name not in SLOW],
)
def test_fault(case: Case, tmp_path: Path) -> None:
    assert case.run(tmp_path)
