"""The checks of `benchmarks.gpu_check` run on a CPU; what goes wrong in one is reported, and harms no other."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from automixalign.storage import files
from benchmarks.gpu_check import __main__ as command
from benchmarks.gpu_check import run
from benchmarks.gpu_check.checks import CHECKS, GOALS, Check, judge
from benchmarks.gpu_check.setting import SMALL, Row, Setting

CUDA_ONLY = {"syncs"}
"""Checks without a number on a CPU."""


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny models are fastest so."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_every_check_runs_on_a_cpu_and_every_goal_is_judged(tmp_path: Path) -> None:
    assert command.main(["--small", "--output", str(tmp_path / "out.json")]) == 0
    result = files.read_json(tmp_path / "out.json")
    numbers = [row for row in result["rows"] if row["value"] is not None]
    assert {row["check"] for row in numbers} == CHECKS.keys() - CUDA_ONLY
    assert all(math.isfinite(row["value"]) for row in numbers)
    assert len(result["goals"]) == len(GOALS)
    assert {goal["verdict"] for goal in result["goals"]} <= {"met", "missed"}


def _fails(_: Setting) -> Iterator[Row]:
    yield Row("before", 1.0)
    raise RuntimeError("no kernel")


def _works(_: Setting) -> Iterator[Row]:
    yield Row("after", 2.0)


def test_an_error_is_a_row_and_the_next_check_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(CHECKS, "ama", Check(_fails, 1))
    monkeypatch.setitem(CHECKS, "syncs", Check(_works, 1))
    output = tmp_path / "out.json"
    assert command.main(["--small", "--only", "ama", "syncs", "--output", str(output)]) == 1
    rows = files.read_json(output)["rows"]
    assert [(row["check"], row["value"], row["error"]) for row in rows] == [
        ("ama", 1.0, ""),
        ("ama", None, "RuntimeError: no kernel"),
        ("syncs", 2.0, ""),
    ]
    assert "ERROR RuntimeError: no kernel" in capsys.readouterr().out


def test_a_goal_is_met_missed_or_unmeasured() -> None:
    def verdicts(*rows: tuple[str, str, float]) -> dict[str, str]:
        results = [{"check": check, "what": what, "value": value} for check, what, value in rows]
        return {goal["what"]: goal["verdict"] for goal in judge(results)}

    speeds = [("speed", "ours, sdpa", 120.0), ("speed", "ours, flex_attention", 140.0), ("speed", "trl", 90.0)]
    tuned = ("speed", "trl, lengths grouped", 100.0)
    sdpa, fastest = (goal.what for goal in GOALS if goal.benchmark == "speed")
    assert set(verdicts().values()) == {"unmeasured"}
    assert verdicts(*speeds)[sdpa] == "met"
    judged = verdicts(*speeds, tuned)
    assert (judged[sdpa], judged[fastest]) == ("missed", "met")


def test_a_resume_shows_nothing_if_two_runs_differ() -> None:
    what = "{}: weights that differ"
    same, other = ({"check": "resume", "what": what.format("two runs"), "value": value} for value in (0, 5))
    resumed = {"check": "resume", "what": what.format("a resumed run"), "value": 0}
    verdicts = [
        {goal["benchmark"]: goal["verdict"] for goal in judge([first, resumed])} for first in (same, other)
    ]
    assert [each["resume"] for each in verdicts] == ["met", "unmeasured"]


def test_what_does_not_fit_the_time_is_not_run() -> None:
    (row,) = run.run_all(["speed"], minutes=0)
    assert row["note"] == "not run: time"


def test_a_check_that_takes_too_long_is_stopped() -> None:
    rows = run.run_apart("speed", seconds=0.5)
    assert [row["note"] for row in rows] == ["stopped after 0 s"]


@pytest.mark.slow
def test_a_check_runs_in_a_process_of_its_own() -> None:
    rows = run.run_apart("machine", seconds=120)
    assert [row["what"] for row in rows] == ["machine", "versions", SMALL.size]
    assert not any(row["error"] for row in rows)
