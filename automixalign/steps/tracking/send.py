"""Send waiting records to MLflow."""

import fcntl
import json
import math
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from automixalign import __version__
from automixalign.steps.tracking.record import Record
from automixalign.steps.tracking.spool import Spool, Target
from automixalign.storage import files
from automixalign.system import shortages
from automixalign.system.errors import StorageError, UnreachableError
from automixalign.system.provenance import library_digest

_AT_A_TIME = 1000
"""Metrics that MLflow takes in one call; of parameters it takes a tenth."""
_EXPERIMENT = "automixalign"
_REFUSED = (400, 404, 409, 413, 422)
"""Answers that concern one record: the others may well be taken."""
_BOUNDED = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""MLflow's own retries, with backoff; as it comes it would try for minutes, report its use, and talk.

A call to a silent server so ends within 50 seconds, one to a server that is down within 5."""
_SQLITE = "sqlite:///"
_AWAY = "see that the MLflow server is up and that MLFLOW_TRACKING_URI is its address, then start again"
_KEY = "automixalign.record"
"""The tag by which a run is known to be a record's, even where the answer to its making was lost."""


def send_waiting(spool: Spool, seconds: float = math.inf) -> str | None:
    """Send all waiting records, oldest first, and remove each that the server has.

    Args:
        seconds: begin no further record after so many.

    Returns:
        None when nothing waits any more, else why the first one that is left could not be sent.
    """
    from mlflow.exceptions import MlflowException

    until = time.monotonic() + seconds
    with _alone(spool):
        target = spool.target()
        if target is None:
            return "no tracking URI is set" if spool.waiting() else None
        stuck = None
        try:
            target = open_pipeline_run(spool, target)
            for file in spool.waiting():
                if time.monotonic() > until:
                    return f"the server is slow: it took {seconds:g} s and has not everything"
                try:
                    _send(spool, file, target)
                except FileNotFoundError as error:  # an artifact that was removed must not hold up the others
                    stuck = stuck or f"{error.filename} is gone; {file} names it"
                except MlflowException as error:
                    if error.get_http_status_code() not in _REFUSED:
                        raise
                    stuck = stuck or f"{file}: {error}"
            if target.ours and (status := spool.closed()):
                _delete_twins(client(target), str(target.run_id), target.key)
                client(target).set_terminated(str(target.run_id), status)
        # Besides its own errors MLflow lets through those of requests, SQLAlchemy and its migrations. None may
        # fail a step: the record waits, and whoever asked is told why.
        except Exception as error:
            if shortages.is_full_disk_error(error):
                return "the disk of the store is full: free some"
            return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return stuck


def client(target: Target) -> Any:
    """MLflow's client of a target."""
    for key, value in _BOUNDED.items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient

    with _only_opener(target.uri):
        return MlflowClient(target.uri)


@contextmanager
def _only_opener(uri: str) -> Iterator[None]:
    """One process at a time opens an SQLite store: MLflow makes its tables then, and two that do so collide."""
    path = Path(uri.removeprefix(_SQLITE))
    if not uri.startswith(_SQLITE) or not path.parent.is_dir():
        yield
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


@contextmanager
def named_errors(what: str) -> Iterator[None]:
    """Raise a `StorageError` in place of what MLflow lets through; an `UnreachableError` where it is away.

    Args:
        what: what cannot be done.
    """
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        status = error.get_http_status_code() if isinstance(error, MlflowException) else 500
        away = isinstance(error, RequestException) or status >= 500
        advice = _AWAY if away else "see what it says, and start again"
        reason = str(error).partition("\n")[0]
        raise (UnreachableError if away else StorageError)(f"{what}: {reason}; {advice}") from error


def check_registry(uri: str) -> None:
    """See that a model registry answers; whether it takes a model is seen when there is one.

    Raises:
        UnreachableError: it does not.
    """
    from mlflow.exceptions import MlflowException

    with named_errors("the model registry cannot be reached"):
        try:
            client(Target(uri=uri)).search_registered_models(max_results=1)
        except MlflowException as error:
            if error.get_http_status_code() >= 500:
                raise


def open_pipeline_run(spool: Spool, target: Target) -> Target:
    """See that there is a run for the whole pipeline, where the target asks for one by name."""
    if target.run_id is not None or target.run_name is None:
        return target
    mlflow = client(target)
    experiment = _experiment(mlflow, target)
    run = _found(mlflow, experiment, target.key) or mlflow.create_run(
        experiment, run_name=target.run_name, tags={_KEY: target.key, **_versions()}
    )
    target = target.model_copy(update={"run_id": run.info.run_id, "ours": True})
    spool.aim(target)
    return target


def _experiment(mlflow: Any, target: Target) -> str:
    name = target.experiment or _EXPERIMENT
    found = mlflow.get_experiment_by_name(name)
    return str(found.experiment_id if found else mlflow.create_experiment(name, target.artifacts))


def _send(spool: Spool, file: Path, target: Target) -> None:
    record = Record.model_validate_json(file.read_text(encoding="utf-8"))
    mlflow = client(target)
    if record.run_id is None:
        tags = {_KEY: record.key, "automixalign.stage": record.stage, **_versions(), **record.tags}
        if target.run_id is None:
            experiment = _experiment(mlflow, target)
        else:
            experiment = mlflow.get_run(target.run_id).info.experiment_id
            tags["mlflow.parentRunId"] = target.run_id
        run = _found(mlflow, experiment, record.key) or mlflow.create_run(
            experiment, round(record.started * 1000), tags, record.title
        )
        # From here on, trying again fills the same run.
        record.run_id = run.info.run_id
        spool.save(file, record)
    assert record.run_id is not None  # noqa: S101  it was made above
    whole = record.of_pipeline and target.run_id is not None
    _fill(mlflow, str(target.run_id) if whole else record.run_id, record)
    ended = round((record.ended or record.started) * 1000)
    mlflow.set_terminated(record.run_id, record.status, ended)
    _delete_twins(mlflow, record.run_id, record.key)
    file.unlink()


def _runs_of(mlflow: Any, experiment: str, key: str) -> Any:
    return mlflow.search_runs([experiment], f"tags.`{_KEY}` = '{key}'")


def _found(mlflow: Any, experiment: str, key: str) -> Any:
    """The run that was made for a record although its maker never heard of it."""
    return next(iter(_runs_of(mlflow, experiment, key)), None)


def _delete_twins(mlflow: Any, run_id: str, key: str) -> None:
    """A call whose answer is lost is repeated by MLflow itself, and makes the run again."""
    for run in _runs_of(mlflow, mlflow.get_run(run_id).info.experiment_id, key):
        if run.info.run_id != run_id:
            mlflow.delete_run(run.info.run_id)


def _fill(mlflow: Any, run_id: str, record: Record) -> None:
    from mlflow.entities import Dataset as MlflowDataset
    from mlflow.entities import DatasetInput, Metric, Param

    known = mlflow.get_run(run_id).data.params  # never changed: a run handed in may have some of its own
    params = [Param(key, value[:6000]) for key, value in record.params.items() if key not in known]
    for batch in _batches(params, _AT_A_TIME // 10):
        mlflow.log_batch(run_id, params=batch)
    moment = round((record.ended or record.started) * 1000)
    metrics = [Metric(key, value, moment, step) for key, value, step in record.metrics]
    for batch in _batches(metrics, _AT_A_TIME):
        mlflow.log_batch(run_id, metrics=batch)
    inputs = [
        DatasetInput(
            MlflowDataset(
                data.name,
                data.digest[:36],
                "local",
                json.dumps({"uri": data.source}),
                profile=json.dumps(data.profile),
            )
        )
        for data in record.datasets
    ]
    if inputs:
        mlflow.log_inputs(run_id, inputs)
    for path, place in record.artifacts:
        if Path(path).is_dir():
            mlflow.log_artifacts(run_id, path, place)
            continue
        folder, _, name = place.rpartition("/")
        with tempfile.TemporaryDirectory() as scratch:  # MLflow takes the name from the file
            files.link(Path(path), Path(scratch) / name)
            mlflow.log_artifact(run_id, str(Path(scratch) / name), folder or None)


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _versions() -> dict[str, str]:
    """The code that ran, and the KFP run it ran in."""
    tags = {"automixalign.version": __version__, "automixalign.library": library_digest()}
    if run := os.environ.get("KFP_RUN_ID"):
        tags["kfp.run_id"] = run
    if commit := _commit():
        tags["mlflow.source.git.commit"] = commit
    return tags


@cache
def _commit() -> str:
    """The commit this code was checked out at; empty where it was not."""
    if (git := shutil.which("git")) is None:
        return ""
    command = [git, "-C", str(Path(__file__).parent), "rev-parse", "--verify", "--quiet", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


@contextmanager
def _alone(spool: Spool) -> Iterator[None]:
    """One process at a time sends from a spool."""
    with (spool.folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
