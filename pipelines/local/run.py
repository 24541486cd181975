"""One local run: start the process that runs the DAG, follow its events, and link its results."""

import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from automixalign.config.experiment import Experiment
from automixalign.config.settings import QUANTIZES_VARIABLE
from automixalign.release.model_card import write_cards
from automixalign.report import run_folder, runs
from automixalign.steps.events import EVENTS_FILE, LOGS_VARIABLE, EventLog
from automixalign.steps.step import WORKERS_VARIABLE
from automixalign.storage import files
from automixalign.system import orphans
from automixalign.training.checkpoints.folder import CHECKPOINTS_VARIABLE
from pipelines.local.attempt import WORKERS, Attempt
from pipelines.local.dag_process import DagProcess
from pipelines.local.mlflow_sender import MlflowSender
from pipelines.local.outcome import KFP_LOG, EventReader, find_failure
from pipelines.local.outputs import list_artifacts, training_costs

MLFLOW_LOG = "mlflow.log"
_ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # By default these libraries send usage statistics.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    WORKERS_VARIABLE: str(WORKERS),
}
"""Variables for every stage of every run."""
_ATTEMPT, _CHECKPOINTS = "attempt-", "checkpoints"
_POLL_SECONDS = 0.2


class Runner(Protocol):
    """How the stages of a run are executed."""

    def prepare(self, folder: Path, environment: Mapping[str, str]) -> Path | None:
        """Prepare a run into `folder` (absolute); return the file that describes the containers, if any."""

    def end(self) -> None:
        """Remove everything of the run except its folder, however it ended."""


class Processes:
    """Stages are processes of this machine; they end together with the process that started them."""

    def prepare(self, folder: Path, environment: Mapping[str, str]) -> Path | None:
        """Do nothing."""
        return None

    def end(self) -> None:
        """Do nothing."""


def run_experiment(
    experiment: Experiment,
    folder: Path,
    on_events: Callable[[list[dict[str, Any]]], None],
    runner: Runner | None = None,
    shared_cache: Path | None = None,
    retries: int = 0,
) -> None:
    """Run an experiment into a new run folder, or resume its run there.

    Nothing is computed twice: finished stages come from the cache, and an interrupted training resumes from its
    last checkpoint.

    Args:
        experiment: the checked configuration.
        folder: the run folder: new, empty, or of the same experiment.
        on_events: called several times a second with the new events of the stages.
        runner: how stages are executed; as processes by default.
        shared_cache: cache folder of all runs; None to use only this run folder's.
        retries: how many times to retry a failed stage.

    Raises:
        ConfigError: the folder is in use or of another experiment, or the runner cannot execute the stages.
        StageFailedError: a stage failed. The run folder has the results of the stages that finished.
    """
    runner = runner or Processes()
    with run_folder.claim(folder, experiment) as lock:
        absolute = folder.resolve()
        work, logs = absolute / run_folder.WORK, absolute / run_folder.LOGS
        earlier_attempts = sorted(work.glob(f"{_ATTEMPT}*"))
        number = int(earlier_attempts[-1].name.removeprefix(_ATTEMPT)) + 1 if earlier_attempts else 1
        attempt_folder = work / f"{_ATTEMPT}{number:04}"
        attempt_folder.mkdir()
        reader = EventReader(logs / EVENTS_FILE)
        reader.skip_earlier_attempts()
        with orphans.hold_lock(attempt_folder / "alive") as alive_lock:
            try:
                sender = MlflowSender(experiment, absolute, logs / MLFLOW_LOG)
                environment = {
                    **_ENVIRONMENT,
                    LOGS_VARIABLE: str(logs),
                    CHECKPOINTS_VARIABLE: str(work / _CHECKPOINTS),
                    orphans.LOCK_VARIABLE: alive_lock.name,
                    **sender.environment,
                    **({QUANTIZES_VARIABLE: "1"} if experiment.loading.quantize else {}),
                }
                containers = runner.prepare(absolute, environment)
            except BaseException:
                runner.end()
                shutil.rmtree(attempt_folder if earlier_attempts else folder)  # the command can be given again
                raise
            attempt = Attempt(
                experiment=experiment,
                folder=attempt_folder,
                cache=work / "cache",
                shared_cache=shared_cache,
                retries=retries,
                containers=containers,
            )
            files.write_text(attempt_folder / "attempt.json", attempt.model_dump_json())
            dag = DagProcess(attempt_folder / "attempt.json", environment, logs / KFP_LOG, lock)
            try:
                try:
                    sender.start_if_needed()
                    while dag.is_running(_POLL_SECONDS):
                        on_events(reader.read_new())
                        sender.start_if_needed()
                finally:
                    status = dag.end()
                    runner.end()
                    last_events = reader.read_new()
                    failure = find_failure(experiment, reader.events, status, logs)
                    sender.close("FAILED" if failure else "FINISHED")
                on_events(last_events)
                run_folder.publish(folder, list_artifacts(attempt_folder))
            finally:
                unsent = sender.wait()
        if unsent:
            on_events([{"stage": "mlflow", "name": "", "event": "warning", "message": unsent}])
        if failure:
            if failure.unreported:
                with suppress(OSError):  # on a full disk, too, the failure itself matters
                    EventLog(*failure.unreported, logs).write("failed", error=failure.reason)
            raise failure
        _finish(folder, [*earlier_attempts, work / _CHECKPOINTS])


def _finish(folder: Path, obsolete: Iterable[Path]) -> None:
    """Write the models' cards, and the report with the seconds of all stages; remove old attempts."""
    write_cards(folder)
    runs.rebuild(folder, training_costs(folder))
    for path in obsolete:  # the last attempt has links to its results
        if path.exists():
            shutil.rmtree(path)
