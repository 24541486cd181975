"""The life of a stage: what it reports, where, and on whose behalf."""

import logging
import sys
import threading
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest

from automixalign.steps.events import EVENTS_FILE, LOGS_VARIABLE, log_name, parse_events
from automixalign.steps.step import adopt_step, collect_warnings, current_step, run_step
from automixalign.storage import files
from tests.system.processes import run

_PROCESS = """
import logging, os, sys
from automixalign.steps.step import run_step
logging.basicConfig()  # as kfp's executor does
with run_step("train_specialist", "helpful") as step:
    step.warn("a \\x1b[2J warning")
    os.write(1, b"native output\\n")
    raise ValueError("a \\x1b[2J failure")
"""


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv(LOGS_VARIABLE, str(tmp_path))
    return lambda: files.read_jsonl(tmp_path / EVENTS_FILE)


@pytest.mark.parametrize("logs", [True, False], ids=["log file", "stderr"])
def test_output_goes_to_the_log_file_of_the_stage_if_there_is_a_logs_folder(logs: bool, tmp_path: Path) -> None:
    ended = run(_PROCESS, check=False, env={LOGS_VARIABLE: str(tmp_path)} if logs else {})
    output = (tmp_path / log_name("train_specialist", "helpful")).read_text() if logs else ended.stderr
    assert output.count("warning: a \\x1b[2J warning\n") == 1
    assert "error: train_specialist [helpful] failed\nTraceback (most recent call last):\n" in output
    assert "ValueError: a \\x1b[2J failure\n" in output
    assert "native output\n" in (output if logs else ended.stdout)
    if logs:
        kinds = [event["event"] for event in parse_events((tmp_path / EVENTS_FILE).read_bytes())]
        assert kinds == ["started", "warning", "failed"]


def test_the_current_stage_is_the_one_of_the_context(events: Any) -> None:
    assert current_step().stage == ""
    with run_step("outer") as outer:
        with run_step("inner", "x") as inner:
            assert current_step() is inner
        assert current_step() is outer

        def warn() -> None:
            current_step().warn("from a thread")

        threads = [threading.Thread(target=copy_context().run, args=(warn,)), threading.Thread(target=warn)]
        for thread in threads:
            thread.start()
            thread.join()
    assert current_step().stage == ""
    assert [event["stage"] for event in events() if event["event"] == "warning"] == ["outer", ""]


def test_a_worker_reports_as_the_stage_that_it_adopts(events: Any) -> None:
    def work() -> None:
        adopt_step("train_generalist", "ama-r")
        current_step().report(3, 3, loss=0.5)

    copy_context().run(work)
    (event,) = events()
    assert (event["stage"], event["name"], event["done"], event["loss"]) == (
        "train_generalist",
        "ama-r",
        3,
        0.5,
    )


def test_progress_is_reported_at_most_twice_a_second_and_at_the_end(events: Any) -> None:
    with run_step("evaluate") as step:
        assert list(step.track(range(100), 100)) == list(range(100))
    reported = [event["done"] for event in events() if event["event"] == "progress"]
    assert reported[0] == 1
    assert reported[-1] == 100
    assert len(reported) < 10


def test_parts_are_reported_as_one_whole(events: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("automixalign.steps.step._REPORT_SECONDS", 0)
    with run_step("reference_logps") as step:
        with step.whole(7):
            assert [*step.track("ab", 4, work=[1, 3]), *step.track("cd", 3, work=[1.5, 1.5])] == [*"abcd"]
        assert [*step.track("e", 1)] == ["e"]
    reported = [(event["done"], event["total"]) for event in events() if event["event"] == "progress"]
    assert reported == [(1, 7), (4, 7), (6, 7), (7, 7), (1, 1)]


def test_a_line_that_was_cut_short_costs_only_its_own_event(tmp_path: Path) -> None:
    assert parse_events(b'{"event": "started"}\n{"event": "prog\n{"event": "finished"}\n') == [
        {"event": "started"},
        {"event": "finished"},
    ]


def test_messages_are_raised_to_the_caller_if_they_cannot_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logging's own handlers ignore a full disk."""
    with Path("/dev/full").open("w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", full)
        with pytest.raises(OSError, match="No space left"):
            logging.getLogger("automixalign").warning("x" * 100_000)


def test_collected_warnings_are_told_by_the_caller(capsys: pytest.CaptureFixture[str]) -> None:
    with collect_warnings() as warnings:
        current_step().warn("few pairs")
    assert (warnings, capsys.readouterr().err) == (["few pairs"], "")


def test_an_error_does_not_hide_collected_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="bad row"), collect_warnings():
        current_step().warn("few pairs")
        raise ValueError("bad row")
    assert capsys.readouterr().err == "warning: few pairs\n"
