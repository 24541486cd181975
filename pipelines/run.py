"""One local run: start the DAG in a process of its own, follow it, gather what it made."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from automixalign import checkpoints, config, config_file, files, progress, run_folder
from automixalign.errors import AutoMixAlignError
from pipelines.local import WORKERS
from pipelines.outputs import KFP, artifacts
from pipelines.sending import Sender

KFP_LOG = "kfp.log"
MLFLOW_LOG = "mlflow.log"
_TAIL = 25
_POLL = 0.2


class StepFailedError(AutoMixAlignError):
    """A step of the DAG failed."""

    def __init__(self, step: str, error: str, log: Path) -> None:
        self.step, self.error, self.log = step, error, log
        super().__init__(f"{step}: {error}")

    def tail(self) -> str:
        """The last lines of the failing step's log."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-_TAIL:])


def run(experiment: config.Experiment, folder: Path, follow: Callable[[list[dict[str, Any]]], None]) -> None:
    """Run an experiment into a new run folder.

    Args:
        experiment: the checked configuration.
        folder: the run folder; it must be new or empty.
        follow: called several times a second with the events of the steps since the last call.

    Raises:
        ConfigError: the folder is in use.
        StepFailedError: a step failed; what the others finished is in the run folder all the same.
    """
    run_folder.create(folder)
    files.write_text(folder / run_folder.CONFIG, config_file.dump(experiment))
    root, logs = folder.resolve() / KFP, folder.resolve() / run_folder.LOGS
    root.mkdir()
    (root / "config.json").write_text(experiment.model_dump_json(), encoding="utf-8")
    events = _Events(logs / progress.EVENTS)
    environment = {
        **os.environ,
        progress.LOGS: str(logs),
        progress.WORKERS: str(WORKERS),
        checkpoints.FOLDER: str(root / "checkpoints"),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # glibc returns every large tensor's pages at once and faults them in again, a quarter of a step's time.
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
        "MALLOC_TOP_PAD_": str(256 << 20),
        # The training libraries report their use to their makers unless told not to.
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    sender = Sender(experiment, folder.resolve())
    environment |= sender.environment
    command = [sys.executable, "-m", "pipelines.local", str(root / "config.json"), str(root)]
    with (logs / KFP_LOG).open("wb") as log:
        # A session of its own, so that the whole family of processes can be ended together.
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        sender.start(logs / MLFLOW_LOG)
        try:
            while _still_runs(process):
                follow(events.new())
        finally:
            _end(process)
            unsent = sender.finish("FAILED" if process.returncode else "FINISHED")
    follow(events.new())
    run_folder.publish(folder, artifacts(root))
    if unsent:
        follow([{"stage": "mlflow", "name": "", "event": "warning", "message": unsent}])
    if process.returncode:
        raise _failure(events.seen, logs)


def _still_runs(process: "subprocess.Popen[bytes]") -> bool:
    try:
        process.wait(_POLL)
    except subprocess.TimeoutExpired:
        return True
    return False


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End what is left of the run, when the user interrupts it."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class _Events:
    """The steps' events, read as they are appended."""

    def __init__(self, path: Path) -> None:
        self.path, self.seen, self._offset = path, list[dict[str, Any]](), 0

    def new(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with self.path.open("rb") as stream:
            stream.seek(self._offset)
            whole = stream.read().rpartition(b"\n")[0]
        self._offset += len(whole) + bool(whole)
        fresh = [json.loads(line) for line in whole.splitlines()]
        self.seen += fresh
        return fresh


def _failure(events: list[dict[str, Any]], logs: Path) -> StepFailedError:
    """The step that failed; one that was killed could not say so, but it never finished either."""
    open_steps: dict[tuple[str, str], dict[str, Any]] = {}
    for event in events:
        key = event["stage"], event["name"]
        if event["event"] == "failed":
            return StepFailedError(step_title(*key), event["error"], logs / progress.log_name(*key))
        if event["event"] == "started":
            open_steps[key] = event
        elif event["event"] == "finished":
            open_steps.pop(key, None)
    if open_steps:
        key = next(iter(open_steps))
        return StepFailedError(
            step_title(*key), "ended without a word (killed?)", logs / progress.log_name(*key)
        )
    return StepFailedError("kfp", "the local runner failed", logs / KFP_LOG)


def step_title(stage: str, name: str) -> str:
    """`train_specialist [helpful]`."""
    return f"{stage} [{name}]" if name else stage
