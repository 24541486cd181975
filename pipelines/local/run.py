"""One local run: start the DAG in a process of its own, follow it, gather what it made."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from automixalign.config.experiment import Experiment
from automixalign.report import run_folder
from automixalign.steps.events import EVENTS_FILE, LOGS_VARIABLE, log_name, parse_events, stage_title
from automixalign.steps.step import WORKERS_VARIABLE
from automixalign.storage import files
from automixalign.system import orphans, shortages
from automixalign.system.errors import AutoMixAlignError
from automixalign.training import checkpoints
from pipelines.local.ahead import Ahead
from pipelines.local.attempt import WORKERS, Attempt
from pipelines.local.outputs import artifacts
from pipelines.local.sending import Sender

KFP_LOG = "kfp.log"
MLFLOW_LOG = "mlflow.log"
_ATTEMPT, _FILE, _CHECKPOINTS = "attempt-", "attempt.json", "checkpoints"
_STATES = ("started", "finished", "failed", "cached")
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

    def prepare(self, folder: Path, environment: Mapping[str, str]) -> Path | None:
        """Make ready for a run into `folder` (absolute); return the file that tells kfp's runner of it."""

    def end(self) -> None:
        """Leave nothing of the run behind but its folder, however it ended."""


class Processes:
    """The steps are processes of this machine; they end with the one that started them."""

    def prepare(self, folder: Path, environment: Mapping[str, str]) -> Path | None:
        """Nothing is needed."""
        return None

    def end(self) -> None:
        """Nothing is left."""


def run(
    experiment: Experiment,
    folder: Path,
    follow: Callable[[list[dict[str, Any]]], None],
    runner: Runner | None = None,
    shared_cache: Path | None = None,
    retries: int = 0,
    process: Ahead | None = None,
) -> None:
    """Run an experiment into a run folder: a new one, or the one where it was ended before.

    What has been done already is not done again: a step that finished is taken from the cache, one that was
    ended in the middle starts again, a training from its last checkpoint.

    Args:
        experiment: the checked configuration.
        folder: the run folder; new, empty, or of the same experiment.
        follow: called several times a second with the events of the steps since the last call.
        runner: what the steps are; by default, processes.
        shared_cache: folder that knows the results of other runs.
        retries: how often a failed step is tried again.
        process: the one that will go through the DAG, where it has been started already.

    Raises:
        ConfigError: the folder is in use or another experiment's, or the runner cannot run the steps.
        StepFailedError: a step failed; what the others finished is in the run folder all the same.
    """
    runner = runner or Processes()
    with process or Ahead() as dag, run_folder.claim(folder, experiment) as lock:
        work, logs = folder.resolve() / run_folder.WORK, folder.resolve() / run_folder.LOGS
        before = sorted(work.glob(f"{_ATTEMPT}*"))
        place = work / f"{_ATTEMPT}{int(before[-1].name[len(_ATTEMPT) :]) + 1 if before else 1:04}"
        place.mkdir()
        events = _Events(logs / EVENTS_FILE)
        with orphans.hold_lock(place / "alive") as behind:
            try:
                sender = Sender(experiment, folder.resolve())
                environment = {
                    **dag.environment,
                    **_environment(work, logs),
                    orphans.LOCK_VARIABLE: behind.name,
                    **sender.environment,
                }
                containers = runner.prepare(folder.resolve(), environment)
            except BaseException:
                runner.end()
                shutil.rmtree(place if before else folder)  # so that the same command can be given again
                raise
            attempt = Attempt(
                experiment=experiment,
                folder=place,
                cache=work / "cache",
                shared_cache=shared_cache,
                retries=retries,
                containers=containers,
                environment=environment,
                log=logs / KFP_LOG,
            )
            files.write_text(place / _FILE, attempt.model_dump_json())
            dag.begin(place / _FILE, lock)
            sender.start(logs / MLFLOW_LOG)
            try:
                try:
                    while dag.runs(_POLL):
                        follow(events.new())
                        sender.look()
                finally:
                    status = dag.end()
                    runner.end()
                    with (logs / KFP_LOG).open("ab") as log:
                        log.write(dag.said())
                    last = events.new()
                    failure = failure_of(experiment, events.seen, status, logs)
                    sender.close("FAILED" if failure else "FINISHED")
                follow(last)
                run_folder.publish(folder, artifacts(place))
            finally:
                unsent = sender.wait()
        if unsent:
            follow([{"stage": "mlflow", "name": "", "event": "warning", "message": unsent}])
        if failure:
            raise failure
        for left in (*before, work / _CHECKPOINTS):  # what counts of it was linked into this attempt
            if left.exists():
                shutil.rmtree(left)


def _environment(work: Path, logs: Path) -> dict[str, str]:
    """What the steps are told, beyond what the user's own environment says."""
    return {
        LOGS_VARIABLE: str(logs),
        WORKERS_VARIABLE: str(WORKERS),
        checkpoints.PLACE: str(work / _CHECKPOINTS),
    }


class _Events:
    """The steps' events, read as they are appended; those of earlier attempts are passed over."""

    def __init__(self, path: Path) -> None:
        self.path, self.seen, self._offset = path, list[dict[str, Any]](), 0
        if path.exists():
            whole = path.read_bytes().rpartition(b"\n")
            self._offset = len(whole[0]) + len(whole[1])
            os.truncate(path, self._offset)  # a line that a power failure cut short

    def new(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with self.path.open("rb") as stream:
            stream.seek(self._offset)
            whole = stream.read().rpartition(b"\n")[0]
        self._offset += len(whole) + bool(whole)
        fresh = parse_events(whole)
        self.seen += fresh
        return fresh


def failure_of(
    experiment: Experiment, events: list[dict[str, Any]], status: int, logs: Path
) -> StepFailedError | None:
    """The step that failed, if one did; one that was killed could not say so, but it never finished either.

    kfp's own word is not enough: it takes a step for a success whose container is gone before kfp asks how it
    ended.
    """
    states: dict[tuple[str, str], dict[str, Any]] = {}
    for event in events:
        key = event["stage"], event["name"]
        if event["event"] in _STATES:  # the last word of a step counts: it may be tried again
            states.pop(key, None)
            states[key] = event
    for key, event in states.items():
        if event["event"] in ("started", "failed"):
            reason = event.get("error") or _silence(event, logs)
            return StepFailedError(stage_title(*key), reason, logs / log_name(*key))
    if status:
        return StepFailedError("kfp", f"the local runner failed{_full(logs)}", logs / KFP_LOG)
    for stage in _last_steps(experiment):
        if (stage, "") not in states:
            return StepFailedError(stage, "never began", logs / KFP_LOG)
    return None


def _silence(began: dict[str, Any], logs: Path) -> str:
    """Why a step said nothing more after its first event `began`, as far as that can be known."""
    before, now = began.get("oom_kills"), shortages.count_oom_kills()
    what_to_do = shortages.memory_advice(began["stage"])
    if before is not None and now is not None and now > before:
        return f"was killed by the system because memory ran out; {what_to_do}"
    if full := _full(logs):
        return f"ended without an error message{full}"
    killed = "it was killed (SIGKILL), most often because memory ran out"
    return f"ended without an error message: {killed}; {what_to_do}"


def _full(logs: Path) -> str:
    if logs.exists() and shortages.is_nearly_full(logs):
        return f"; the disk of {logs} is full: free some, or name a run folder on another"
    return ""


def _last_steps(experiment: Experiment) -> list[str]:
    """The steps whose results no other step needs: all others would be missed."""
    wanted = {"compare": True, "register": experiment.registry, "publish": experiment.output}
    return [stage for stage, asked in wanted.items() if asked]
