"""How a run ended is read from the events of its stages; kfp's exit status is not enough."""

from pathlib import Path
from typing import Any

import pytest

from automixalign.config.experiment import Experiment, parse_experiment
from pipelines.local.outcome import EventReader, find_failure

LOGS = Path("logs")


def events(*lines: str) -> list[dict[str, Any]]:
    """`started evaluate reference`."""
    parsed = []
    for line in lines:
        event, stage, *name = line.split()
        error = {"error": "ValueError: no"} if event == "failed" else {}
        parsed.append({"event": event, "stage": stage, "name": "".join(name), **error})
    return parsed


SUCCESS = events(
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


@pytest.fixture
def experiment(experiment_data: dict[str, Any]) -> Experiment:
    return parse_experiment(experiment_data, "test")


@pytest.mark.parametrize(
    "retried",
    [
        [],
        ["started evaluate a", "failed evaluate a", "started evaluate a", "finished evaluate a"],
        ["started evaluate a", "started evaluate a", "finished evaluate a"],
    ],
    ids=["no retry", "failed", "killed"],
)
def test_a_run_succeeded_if_the_last_try_of_every_stage_did(retried: list[str], experiment: Experiment) -> None:
    assert find_failure(experiment, [*events(*retried), *SUCCESS], 0, LOGS) is None


FAILED = events("started evaluate a", "failed evaluate a")
KILLED = (
    "evaluate [b]: ended without an error message: it was killed (SIGKILL), most often because memory ran "
    "out; lower evaluation.batch_size or max_length, or give the stage more memory"
)


@pytest.mark.parametrize(
    ("last_events", "status", "message", "log"),
    [
        (FAILED, 1, "evaluate [a]: ValueError: no", "evaluate-a.log"),
        (FAILED, 0, "evaluate [a]: ValueError: no", "evaluate-a.log"),
        (events("started evaluate b"), 0, KILLED, "evaluate-b.log"),
        ([], 1, "kfp: the local runner failed: RuntimeError: no engine", "kfp.log"),
    ],
    ids=["failed", "failed, and kfp did not notice", "killed, and kfp did not notice", "kfp itself"],
)
def test_a_failure_is_the_first_bad_stage_whatever_kfp_reports(
    last_events: list[dict[str, Any]],
    status: int,
    message: str,
    log: str,
    experiment: Experiment,
    tmp_path: Path,
) -> None:
    for name in ("kfp.log", "evaluate-a.log", "evaluate-b.log"):
        (tmp_path / name).write_text("Traceback:\n  line 1\nRuntimeError: no engine\n\n")
    failure = find_failure(experiment, [*SUCCESS, *last_events], status, tmp_path)
    assert failure is not None
    assert (str(failure), failure.log) == (message, tmp_path / log)
    tail = ["Traceback:", "  line 1", "RuntimeError: no engine"]
    assert failure.tail() == (tail if "evaluate [b]" in message else []), "only of a stage without a message"


def test_a_stage_that_the_system_killed_for_memory(experiment: Experiment) -> None:
    """Linux counts these kills; the event `started` has the number at the start of the stage."""
    killed = [{**event, "oom_kills": -1} for event in events("started train_generalist a")]
    failure = find_failure(experiment, [*SUCCESS, *killed], 1, LOGS)
    assert str(failure).startswith(
        "train_generalist [a]: was killed by the system because memory ran out; lower "
    )
    assert "training.micro_batch_size" in str(failure)


@pytest.mark.parametrize(
    ("change", "missing"),
    [({}, "compare"), ({"registry": {"name": "m"}}, "register"), ({"output": "s3://b/p"}, "publish")],
)
def test_a_last_stage_that_never_started(
    change: dict[str, Any], missing: str, experiment_data: dict[str, Any]
) -> None:
    without_missing = [event for event in SUCCESS if event["stage"] != missing]
    failure = find_failure(parse_experiment(experiment_data | change, "test"), without_missing, 0, LOGS)
    assert str(failure) == f"{missing}: never started"


def test_the_reader_skips_a_line_that_a_full_disk_cut(tmp_path: Path) -> None:
    reader = EventReader(tmp_path / "events")
    reader.path.write_bytes(b'{"stage": "merge", "ev\n{"stage": "compare"}\n{"stage":')
    assert reader.read_new() == [{"stage": "compare"}]
    later = EventReader(reader.path)
    later.skip_earlier_attempts()
    assert later.read_new() == []
    with reader.path.open("ab") as out:
        out.write(b'{"stage": "publish"}\n')
    assert reader.path.read_bytes().splitlines()[-1] == b'{"stage": "publish"}', "the cut line is removed"
