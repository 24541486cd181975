"""Send waiting records to MLflow."""

import fcntl
import getpass
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from automixalign import __version__
from automixalign.steps.tracking.record import Record
from automixalign.steps.tracking.spool import Spool, Target
from automixalign.steps.tracking.store import sqlite_file
from automixalign.storage import files
from automixalign.system import shortages
from automixalign.system.errors import StorageError, UnreachableError
from automixalign.system.provenance import git_commit, library_digest

_METRICS_PER_CALL, _PARAMS_PER_CALL = 1000, 100
"""MLflow's limits."""
_MAX_PARAM_CHARACTERS = 6000
_EXPERIMENT = "automixalign"
_REFUSED = (400, 404, 409, 413, 422)
"""Status codes that concern one record; the server may accept the others."""
_CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""MLflow's retries with backoff take minutes by default. With these settings, a call ends within 50 seconds if
the server does not answer, and within 5 if it is down."""
_UNREACHABLE_ADVICE = (
    "check that the MLflow server is up and that MLFLOW_TRACKING_URI is its address, then start again"
)
_KEY_TAG = "automixalign.record"
"""Names the record of a run, so that the run is found if the response to its creation was lost."""


def send_waiting(spool: Spool, seconds: float = math.inf) -> str | None:
    """Send all waiting records, oldest first, and remove each that the server has.

    Args:
        spool: the folder of the records.
        seconds: start no further record after this time.

    Returns:
        None when no record waits any more, else why the first remaining one could not be sent.
    """
    from mlflow.exceptions import MlflowException

    until = time.monotonic() + seconds
    with _locked(spool):
        target = spool.target()
        if target is None:
            return "no tracking URI is set" if spool.waiting() else None
        reason = None
        try:
            target = open_pipeline_run(spool, target)
            for file in spool.waiting():
                if time.monotonic() > until:
                    return f"the server is slow: it did not take all records within {seconds:g} s"
                try:
                    _send(spool, file, target)
                except FileNotFoundError as error:  # a removed artifact must not block the other records
                    reason = reason or f"{error.filename} is gone; {file} names it"
                except MlflowException as error:
                    if error.get_http_status_code() not in _REFUSED:
                        raise
                    reason = reason or f"{file}: {error}"
            if target.ends_run and (status := spool.closed()):
                _delete_duplicates(client(target), str(target.run_id), target.key)
                client(target).set_terminated(str(target.run_id), status)
        # MLflow also raises errors of requests, SQLAlchemy and alembic. None of them may fail a stage: the
        # record waits, and the caller gets the reason.
        except Exception as error:
            if shortages.is_full_disk_error(error):
                return "the disk of the store is full: free some space"
            return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return reason


def client(target: Target) -> Any:
    """MLflow's client for a target."""
    for key, value in _CLIENT_SETTINGS.items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient

    with _only_opener(target.uri):
        return MlflowClient(target.uri)


@contextmanager
def _only_opener(uri: str) -> Iterator[None]:
    """Let one process at a time open an SQLite store: MLflow creates its tables then, and two collide."""
    path = sqlite_file(uri)
    if path is None or not path.parent.is_dir():
        yield
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
        quoted = Path(uri.removeprefix("sqlite:///")).parent
        if quoted != path.parent:  # MLflow 3.17 makes an empty folder with this name
            with suppress(OSError):
                os.removedirs(quoted)


@contextmanager
def named_errors(failure: str) -> Iterator[None]:
    """Raise a `StorageError` for any error of MLflow, or an `UnreachableError` if the server is down.

    Args:
        failure: what failed, the beginning of the message.
    """
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        status = error.get_http_status_code() if isinstance(error, MlflowException) else 500
        unreachable = isinstance(error, RequestException) or status >= 500
        advice = _UNREACHABLE_ADVICE if unreachable else "follow the message, and start again"
        reason = str(error).partition("\n")[0]
        raise (UnreachableError if unreachable else StorageError)(f"{failure}: {reason}; {advice}") from error


def check_registry(uri: str) -> None:
    """Check that a model registry answers this user. Only `register` shows whether it accepts a model.

    Raises:
        UnreachableError: it does not answer.
        StorageError: the store has no registry, or does not let this user in.
    """
    with named_errors(f"registry: {uri} does not answer as a model registry"):
        client(Target(uri=uri)).search_registered_models(max_results=1)


def opened_target(spool: Spool, target: Target) -> Target:
    """The target of a spool, with the pipeline's run. The sender may create it at the same time."""
    with _locked(spool):
        return open_pipeline_run(spool, spool.target() or target)


def open_pipeline_run(spool: Spool, target: Target) -> Target:
    """Create the pipeline's run if the target has a name but no run for it; return the new target."""
    if target.run_id is not None or target.run_name is None:
        return target
    mlflow = client(target)
    experiment = experiment_id(mlflow, target)
    run = _find_run(mlflow, experiment, target.key) or mlflow.create_run(
        experiment, run_name=target.run_name, tags={_KEY_TAG: target.key, **_versions()}
    )
    target = target.model_copy(update={"run_id": run.info.run_id, "ends_run": True})
    spool.aim(target)
    return target


def experiment_id(mlflow: Any, target: Target) -> str:
    """The id of a target's experiment, which is created if there is none."""
    from mlflow.exceptions import MlflowException

    name = target.experiment or _EXPERIMENT
    experiment = mlflow.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(mlflow.create_experiment(name, target.artifacts))
        except MlflowException:
            experiment = mlflow.get_experiment_by_name(name)
            if experiment is None:  # else another run created it at the same moment
                raise
    return str(experiment.experiment_id)


def _send(spool: Spool, file: Path, target: Target) -> None:
    record = Record.model_validate_json(file.read_text(encoding="utf-8"))
    mlflow = client(target)
    run_id = record.run_id or _create_run(mlflow, record, target)
    if record.run_id is None:
        # A later attempt then fills the same run.
        record.run_id = run_id
        spool.save(file, record)
    of_pipeline = record.of_pipeline and target.run_id is not None
    _fill(mlflow, str(target.run_id) if of_pipeline else run_id, record)
    mlflow.set_terminated(run_id, record.status, round((record.ended or record.started) * 1000))
    _delete_duplicates(mlflow, run_id, record.key)
    file.unlink()


def _create_run(mlflow: Any, record: Record, target: Target) -> str:
    tags = {_KEY_TAG: record.key, "automixalign.stage": record.stage, **_versions(), **record.tags}
    if target.run_id is None:
        experiment = experiment_id(mlflow, target)
    else:
        experiment = mlflow.get_run(target.run_id).info.experiment_id
        tags["mlflow.parentRunId"] = target.run_id
    run = _find_run(mlflow, experiment, record.key) or mlflow.create_run(
        experiment, round(record.started * 1000), tags, record.title
    )
    return str(run.info.run_id)


def _runs_of(mlflow: Any, experiment: str, key: str) -> Any:
    return mlflow.search_runs([experiment], f"tags.`{_KEY_TAG}` = '{key}'")


def _find_run(mlflow: Any, experiment: str, key: str) -> Any:
    """The run of a record if the response to its creation was lost, else None."""
    return next(iter(_runs_of(mlflow, experiment, key)), None)


def _delete_duplicates(mlflow: Any, run_id: str, key: str) -> None:
    """Delete the other runs of a record, which MLflow creates when it repeats a call after a lost response."""
    for run in _runs_of(mlflow, mlflow.get_run(run_id).info.experiment_id, key):
        if run.info.run_id != run_id:
            mlflow.delete_run(run.info.run_id)


def _fill(mlflow: Any, run_id: str, record: Record) -> None:
    from mlflow.entities import Dataset, DatasetInput, Metric, Param

    existing = mlflow.get_run(run_id).data.params  # MLflow refuses to change a parameter
    params = [
        Param(key, value[:_MAX_PARAM_CHARACTERS]) for key, value in record.params.items() if key not in existing
    ]
    for batch in _batches(params, _PARAMS_PER_CALL):
        mlflow.log_batch(run_id, params=batch)
    if record.description:
        mlflow.set_tag(run_id, "mlflow.note.content", record.description + _report_link(mlflow, run_id, record))
    moment = round((record.ended or record.started) * 1000)
    metrics = [Metric(key, value, moment, step) for key, value, step in record.metrics]
    for batch in _batches(metrics, _METRICS_PER_CALL):
        mlflow.log_batch(run_id, metrics=batch)
    inputs = []
    for data in record.datasets:
        source, profile = json.dumps({"uri": data.source}), json.dumps(data.profile)
        inputs.append(DatasetInput(Dataset(data.name, data.digest[:36], "local", source, profile=profile)))
    if inputs:
        mlflow.log_inputs(run_id, inputs)
    for file, path in record.artifacts:
        if Path(file).is_dir():
            mlflow.log_artifacts(run_id, file, path)
            continue
        folder, _, name = path.rpartition("/")
        with tempfile.TemporaryDirectory() as scratch:  # MLflow names the artifact after the file
            files.link(Path(file), Path(scratch) / name)
            mlflow.log_artifact(run_id, str(Path(scratch) / name), folder or None)


def _report_link(mlflow: Any, run_id: str, record: Record) -> str:
    """A link to the report among the run's artifacts, in MLflow's own pages."""
    for _, path in record.artifacts:
        if path.endswith(".html"):
            experiment = mlflow.get_run(run_id).info.experiment_id
            return f"\n\n[The report](#/experiments/{experiment}/runs/{run_id}/artifacts/{path})"
    return ""


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _versions() -> dict[str, str]:
    """Tags that name the code, the user and the KFP run."""
    tags = {"automixalign.version": __version__, "automixalign.library": library_digest()}
    tags |= {"mlflow.source.name": "automixalign", "mlflow.source.type": "LOCAL"}
    with suppress(KeyError, OSError):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    if run := os.environ.get("KFP_RUN_ID"):
        tags |= {"kfp.run_id": run, "mlflow.source.type": "JOB"}
    if commit := git_commit():
        tags["mlflow.source.git.commit"] = commit
    return tags


@contextmanager
def _locked(spool: Spool) -> Iterator[None]:
    """Let one process at a time send from a spool."""
    with (spool.folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
