"""Steps that are killed and tried again by kfp's own runner, and where the second attempt goes on."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from automixalign.config.methods import GeneralistSettings
from automixalign.steps.events import LOGS_VARIABLE
from automixalign.training.checkpoints import PLACE, SEAL
from automixalign.training.train import GeneralistTraining
from benchmarks.faults._interrupted import EVERYTHING, outcome, places, undisturbed
from benchmarks.faults.case import Case, UnexpectedError
from benchmarks.faults.stored_checkpoints import objects, place_of

_GROUP = "retries"
_STEPS = 200
_SECONDS = 240


def _retried(folder: Path, environment: dict[str, str], is_stored: Callable[[], bool]) -> str:
    """Kill the step with SIGKILL once it has a checkpoint; kfp then tries it again."""
    given = json.loads(EVERYTHING) | {"budget": {"steps": _STEPS}}
    given["training"] |= {"checkpoint_every": _STEPS // 10}
    text = json.dumps(given)
    training = GeneralistTraining(
        settings=GeneralistSettings.model_validate_json(text),
        **places(),
        output=folder / "model",
        trajectory=folder / "trajectory.jsonl",
    )
    (folder / "training.json").write_text(training.model_dump_json())
    (folder / "logs").mkdir()
    command = [sys.executable, "-m", "benchmarks.faults._retried", folder / "training.json", folder / "kfp"]
    # One thread, for the undisturbed training has one.
    environ = {**os.environ, "OMP_NUM_THREADS": "1", LOGS_VARIABLE: str(folder / "logs"), **environment}
    with (folder / "kfp.log").open("wb") as log:
        run = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
        try:
            _kill_the_step(run, is_stored)
            code = run.wait(_SECONDS)
        finally:
            run.kill()
    log_text = (folder / "kfp.log").read_text()
    if code:
        raise UnexpectedError(f"exit code {code}: {log_text.splitlines()[-1]}")
    events = [json.loads(line) for line in (folder / "logs" / "events.jsonl").read_text().splitlines()]
    states = [event["event"] for event in events if event["event"] in ("started", "failed", "finished")]
    went_on = re.findall(r"goes on after step (\d+)", (folder / "logs" / "train_generalist.log").read_text())
    if states != ["started", "started", "finished"] or len(went_on) != 1 or int(went_on[0]) < _STEPS // 10:
        raise UnexpectedError(f"the step's events are {states}; it went on after {went_on}")
    if outcome(folder)[:2] != undisturbed(text)[:2]:
        raise UnexpectedError("it ended in other bits than an undisturbed training")
    return f"killed by SIGKILL, tried again by kfp, on after step {went_on[0]}, the same bits"


def _kill_the_step(run: "subprocess.Popen[bytes]", is_stored: Callable[[], bool]) -> None:
    """Kill every process below kfp's, as the system does where memory runs out."""
    until = time.monotonic() + _SECONDS
    while not is_stored():
        if run.poll() is not None or time.monotonic() > until:
            raise UnexpectedError("the step never had a checkpoint")
        time.sleep(0.02)
    for child in psutil.Process(run.pid).children(recursive=True):
        child.kill()


def _here(folder: Path) -> str:
    kept = folder / "checkpoints"
    return _retried(folder, {PLACE: str(kept)}, lambda: any(kept.glob(f"*/checkpoint-*/{SEAL}")))


def _in_s3(folder: Path) -> str:
    seen = _retried(
        folder, place_of(folder.name), lambda: any(name.endswith(SEAL) for name in objects(folder.name))
    )
    if left := objects(folder.name):
        raise UnexpectedError(f"in S3 stay {sorted(left)}")
    return seen


_GOES_ON = "the second attempt goes on from its checkpoint"
CASES = [
    Case(_GROUP, "a killed training, its checkpoints in a folder", _GOES_ON, _here),
    Case(_GROUP, "a killed training, its checkpoints in S3", f"{_GOES_ON}; nothing stays in S3", _in_s3),
]
