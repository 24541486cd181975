"""One local run: start the DAG in a process of its own, follow it, gather what it made."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

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


class Runner(Protocol):
    """What the steps of a run are."""

    def prepare(self, folder: Path, environment: Mapping[str, str]) -> list[str]:
        """Make ready for a run into `folder` (absolute); return arguments for `pipelines.local`."""

    def end(self) -> None:
        """Leave nothing of the run behind but its folder, however it ended."""


class Processes:
    """The steps are processes of this machine; they end with the one that started them."""

    def prepare(self, folder: Path, environment: Mapping[str, str]) -> list[str]:
        """Nothing is needed."""
        return []

    def end(self) -> None:
        """Nothing is left."""


def run(
    experiment: config.Experiment,
    folder: Path,
    follow: Callable[[list[dict[str, Any]]], None],
    runner: Runner | None = None,
) -> None:
    """Run an experiment into a new run folder.

    Args:
        experiment: the checked configuration.
        folder: the run folder; it must be new or empty.
        follow: called several times a second with the events of the steps since the last call.
        runner: what the steps are; by default, processes.

    Raises:
        ConfigError: the folder is in use, or the steps cannot run as the runner has them.
        StepFailedError: a step failed; what the others finished is in the run folder all the same.
    """
    runner = runner or Processes()
    run_folder.create(folder)
    files.write_text(folder / run_folder.CONFIG, config_file.dump(experiment))
    root, logs = folder.resolve() / KFP, folder.resolve() / run_folder.LOGS
    root.mkdir()
    (root / "config.json").write_text(experiment.model_dump_json(), encoding="utf-8")
    events = _Events(logs / progress.EVENTS)
    sender = Sender(experiment, folder.resolve())
    environment = {**_environment(root, logs), **sender.environment}
    try:
        arguments = runner.prepare(folder.resolve(), environment)
    except BaseException:
        runner.end()
        shutil.rmtree(folder)  # so that the same command can be given again
        raise
    command = [sys.executable, "-m", "pipelines.local", str(root / "config.json"), str(root), *arguments]
    with (logs / KFP_LOG).open("wb") as log:
        # A session of its own, so that the whole family of processes can be ended together.
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        sender.start(logs / MLFLOW_LOG)
        try:
            while _still_runs(process):
                follow(events.new())
        finally:
            _end(process)
            runner.end()
            last = events.new()
            failure = failure_of(experiment, events.seen, process.returncode, logs)
            unsent = sender.finish("FAILED" if failure else "FINISHED")
    follow(last)
    run_folder.publish(folder, artifacts(root))
    if unsent:
        follow([{"stage": "mlflow", "name": "", "event": "warning", "message": unsent}])
    if failure:
        raise failure


def _environment(root: Path, logs: Path) -> dict[str, str]:
    """What the steps are told, beyond what the user's own environment says."""
    return {
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


def failure_of(
    experiment: config.Experiment, events: list[dict[str, Any]], status: int, logs: Path
) -> StepFailedError | None:
    """The step that failed, if one did; one that was killed could not say so, but it never finished either.

    kfp's own word is not enough: it takes a step for a success whose container is gone before kfp asks how it
    ended.
    """
    states: dict[tuple[str, str], str] = {}
    for event in events:
        key = event["stage"], event["name"]
        if event["event"] == "failed":
            return StepFailedError(step_title(*key), event["error"], logs / progress.log_name(*key))
        if event["event"] in ("started", "finished"):
            states[key] = event["event"]
    for key, state in states.items():
        if state == "started":
            reason = "ended without a word (killed?)"
            return StepFailedError(step_title(*key), reason, logs / progress.log_name(*key))
    if status:
        return StepFailedError("kfp", "the local runner failed", logs / KFP_LOG)
    for stage in _last_steps(experiment):
        if (stage, "") not in states:
            return StepFailedError(stage, "never began", logs / KFP_LOG)
    return None


def _last_steps(experiment: config.Experiment) -> list[str]:
    """The steps whose results no other step needs: all others would be missed."""
    wanted = {"compare": True, "register": experiment.registry, "publish": experiment.output}
    return [stage for stage, asked in wanted.items() if asked]


def step_title(stage: str, name: str) -> str:
    """`train_specialist [helpful]`."""
    return f"{stage} [{name}]" if name else stage
