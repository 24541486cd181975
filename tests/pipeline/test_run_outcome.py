"""How a run ended is told from its steps' events; kfp's exit status is not enough."""

from pathlib import Path
from typing import Any

import pytest

from automixalign.config.experiment import parse_experiment
from pipelines.local.run import _Events, failure_of

LOGS = Path("logs")


def events(*lines: str) -> list[dict[str, Any]]:
    """`started evaluate reference`."""
    found = []
    for line in lines:
        event, stage, *name = line.split()
        error = {"error": "ValueError: no"} if event == "failed" else {}
        found.append({"event": event, "stage": stage, "name": "".join(name), **error})
    return found


WELL = events(
    "started validate_config",
    "finished validate_config",
    "started evaluate reference",
    "started evaluate uniform",
    "progress evaluate uniform",
    "finished evaluate uniform",
    "warning evaluate reference",
    "finished evaluate reference",
    "started compare",
    "finished compare",
)


def test_a_run_whose_steps_all_finished_has_not_failed(experiment_data: dict[str, Any]) -> None:
    assert failure_of(parse_experiment(experiment_data, "test"), WELL, 0, LOGS) is None


@pytest.mark.parametrize("lines", [["failed evaluate a"], []], ids=["failed", "killed"])
def test_a_step_that_was_tried_again_has_not_failed(lines: list[str], experiment_data: dict[str, Any]) -> None:
    again = events("started evaluate a", *lines, "started evaluate a", "finished evaluate a")
    assert failure_of(parse_experiment(experiment_data, "test"), [*again, *WELL], 0, LOGS) is None


@pytest.mark.parametrize(
    ("ended", "status", "message", "log"),
    [
        (
            events("started evaluate a", "failed evaluate a"),
            1,
            "evaluate [a]: ValueError: no",
            "evaluate-a.log",
        ),
        (
            events("started evaluate a", "failed evaluate a"),
            0,
            "evaluate [a]: ValueError: no",
            "evaluate-a.log",
        ),
        (
            events("started evaluate b"),
            0,
            "evaluate [b]: ended without an error message: it was killed (SIGKILL), most often because memory "
            "ran out; lower "
            "evaluation.batch_size or max_length, or give the step more memory",
            "evaluate-b.log",
        ),
        ([], 1, "kfp: the local runner failed", "kfp.log"),
    ],
    ids=["failed", "failed, and kfp did not see it", "killed, and kfp did not see it", "kfp itself"],
)
def test_a_run_has_failed_by_its_first_bad_step_whatever_kfp_says(
    ended: list[dict[str, Any]], status: int, message: str, log: str, experiment_data: dict[str, Any]
) -> None:
    failure = failure_of(parse_experiment(experiment_data, "test"), [*WELL, *ended], status, LOGS)
    assert (str(failure), failure and failure.log) == (message, LOGS / log)


def test_a_step_that_the_system_killed_for_memory_is_told_so(experiment_data: dict[str, Any]) -> None:
    """Linux counts such kills; the step noted how many there had been when it started."""
    killed = [{**event, "oom_kills": -1} for event in events("started train_generalist a")]
    failure = failure_of(parse_experiment(experiment_data, "test"), [*WELL, *killed], 1, LOGS)
    assert str(failure).startswith(
        "train_generalist [a]: was killed by the system because memory ran out; lower "
    )
    assert "training.micro_batch_size" in str(failure)


def test_an_event_that_a_full_disk_cut_short_is_passed_over(tmp_path: Path) -> None:
    events = _Events(tmp_path / "events")
    events.path.write_bytes(b'{"stage": "merge", "ev\n{"stage": "compare"}\n{"stage":')
    assert events.new() == [{"stage": "compare"}]
    assert _Events(events.path).new() == [], "those of an earlier attempt are passed over"
    with events.path.open("ab") as out:
        out.write(b'{"stage": "publish"}\n')
    assert events.path.read_bytes().splitlines()[-1] == b'{"stage": "publish"}', "what was cut short is gone"


@pytest.mark.parametrize(
    ("change", "missing"),
    [({}, "compare"), ({"registry": {"name": "m"}}, "register"), ({"output": "s3://b/p"}, "publish")],
)
def test_a_last_step_that_never_began_is_missed(
    change: dict[str, Any], missing: str, experiment_data: dict[str, Any]
) -> None:
    seen = [event for event in WELL if missing != "compare" or event["stage"] != "compare"]
    failure = failure_of(parse_experiment(experiment_data | change, "test"), seen, 0, LOGS)
    assert str(failure) == f"{missing}: never began"
