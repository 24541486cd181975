"""Have Kubeflow Trainer run a training on several nodes, and wait for it.

Two existing ways do not fit. The Kubeflow SDK's client must read the cluster's runtimes, and its jobs have
fewer fields. kfp's TaskConfig takes the settings of a pod from the component, not from an experiment.

The name of a TrainJob is made of everything that determines the training. A stage that is started again finds
the result, or follows the job that is still running. The stage deletes its job in the end, also a failed one:
its pods end anyway, and its nodes have reported their errors.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from pydantic import ValidationError

from automixalign.config.cluster import TRAIN_JOB, TrainJobRequest
from automixalign.steps.step import current_step
from automixalign.system.errors import ConfigError, StorageError, TrainingError
from automixalign.system.messages import logger
from automixalign.system.schema import describe
from automixalign.training.job import Training
from automixalign.training.nodes.handover import Exchange, pack
from automixalign.training.nodes.manifest import DIGEST, render
from automixalign.training.nodes.server import RefusedError, TrainJobs, UnavailableError

_POLL_SECONDS = 10.0
_RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0, 60.0)
"""The pauses before each further request to a server that does not answer."""
_DELETION_SECONDS = 600.0
"""An earlier job of the same name may take this long to end."""
_T = TypeVar("_T")


class _LostError(TrainingError):
    """The server no longer answers; the job may still run."""


def run(training: Training) -> dict[str, Any]:
    """Run a training as a TrainJob on `training.nodes` nodes, and wait for its end.

    Returns:
        What the training returned in the first process.

    Raises:
        ConfigError: there is no cluster, or it refuses the job.
        AutoMixAlignError: the first error of a node; a TrainingError if the nodes reported none.
        StorageError: S3 cannot store the inputs or read the result.
    """
    request, size = _request(training), training.settings.training
    handover, sources = pack(training)
    exchange = Exchange.of(handover, request.storage)
    if not exchange.is_finished():
        jobs = TrainJobs()
        exchange.send(handover, sources)
        manifest = render(
            request, f"train-{handover.id}", exchange.uri, nodes=size.nodes, processes=size.processes
        )
        _RunningJob(jobs, exchange, manifest).run()
    return exchange.download_result(training)


def _request(training: Training) -> TrainJobRequest:
    text = os.environ.get(TRAIN_JOB)
    if text is None:
        nodes = training.settings.training.nodes
        raise ConfigError(
            f"training.nodes: {nodes} nodes need Kubeflow Trainer, and so a cluster: "
            "run it there (`ama submit`), or set training.nodes: 1"
        )
    try:
        return TrainJobRequest.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError(
            f"{TRAIN_JOB} is not what this version writes: {describe(error)}; compile the pipeline again"
        ) from error


class _RunningJob:
    """A TrainJob from its creation to its end."""

    def __init__(self, jobs: TrainJobs, exchange: Exchange, manifest: dict[str, Any]) -> None:
        self.jobs, self.exchange, self.manifest = jobs, exchange, manifest
        self.name: str = manifest["metadata"]["name"]
        self.title = f"TrainJob {self.name} (namespace {jobs.namespace})"

    def run(self) -> None:
        with _sigterm_as_exit():
            try:
                self._start()
                self._wait()
            except (RefusedError, _LostError):
                raise  # no job exists, or the server cannot delete it
            except BaseException:
                self._delete()
                raise
            self._delete()

    def _start(self) -> None:
        """Create the job, or find the running job of an earlier attempt."""
        deadline = time.monotonic() + _DELETION_SECONDS
        while True:
            job = _retry(lambda: self.jobs.get(self.name))
            if job is None:
                _retry(self.exchange.delete_errors)
                if _retry(lambda: self.jobs.create(self.manifest)):
                    return self._log(f"was created; {self._logs_command()}")
            elif self._is_current(job):
                return self._log(f"runs already; {self._logs_command()}")
            elif time.monotonic() > deadline:
                raise TrainingError(f"{self.title}: an earlier job of this name still exists; delete it")
            elif not job["metadata"].get("deletionTimestamp"):
                self._log("exists, but has ended or has other settings: it is deleted first")
                _retry(lambda: self.jobs.delete(self.name))
            time.sleep(_POLL_SECONDS)

    def _is_current(self, job: dict[str, Any]) -> bool:
        """Whether an existing job has the same manifest, and still runs."""
        metadata = job["metadata"]
        if (metadata.get("annotations") or {}).get(DIGEST) != self.manifest["metadata"]["annotations"][DIGEST]:
            return False
        ended = _conditions(job).keys() & {"Complete", "Failed"}
        return not ended and not metadata.get("deletionTimestamp")

    def _wait(self) -> None:
        logged = ""
        while True:
            job = _retry(lambda: self.jobs.get(self.name))
            if job is None and _retry(self.exchange.is_finished):
                return  # another run of the same training waited for the job, and deleted it
            if job is None:
                raise TrainingError(f"{self.title} was deleted before its end; start the stage again")
            conditions = _conditions(job)
            if "Complete" in conditions:
                return
            # Kubernetes would restart that node only; kfp restarts all of them, with the stage.
            if error := _retry(self.exchange.first_error):
                raise error
            if failed := conditions.get("Failed"):
                raise TrainingError(
                    f"{self.title} failed ({failed.get('reason')}): {failed.get('message')}; no node reported "
                    "an error: one may have exceeded its memory or time (`cluster.steps`), or found no image"
                )
            if (state := self._state(job, conditions)) != logged:
                self._log(state)
                logged = state
            time.sleep(_POLL_SECONDS)

    def _state(self, job: dict[str, Any], conditions: dict[str, Any]) -> str:
        if suspended := conditions.get("Suspended"):
            return f"is suspended, for example by a queue: {suspended.get('message')}"
        parts = (job.get("status") or {}).get("jobsStatus") or []
        nodes = self.manifest["spec"]["trainer"]["numNodes"]
        running = any(part["name"] == "node" and part.get("ready") for part in parts)
        return f"runs on {nodes} nodes" if running else f"waits for its {nodes} nodes to start"

    def _delete(self) -> None:
        try:
            self.jobs.delete(self.name)
        except (RefusedError, UnavailableError) as error:
            current_step().warn(f"{self.title} could not be deleted; delete it: {error}")

    def _logs_command(self) -> str:
        return (
            f"its logs: kubectl logs --namespace {self.jobs.namespace} --container node --prefix --follow "
            f"--selector jobset.sigs.k8s.io/jobset-name={self.name}"
        )

    def _log(self, state: str) -> None:
        logger.info("%s %s", self.title, state)


def _conditions(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The conditions of a job that are true, by type."""
    conditions = (job.get("status") or {}).get("conditions") or []
    return {each["type"]: each for each in conditions if each["status"] == "True"}


def _retry(request: Callable[[], _T]) -> _T:
    """The answer of the cluster or S3 to a request, repeated while they do not answer."""
    for pause in (*_RETRY_SECONDS, None):
        try:
            return request()
        except (UnavailableError, StorageError) as error:
            if pause is None:
                advice = "the TrainJob may still run: start the stage again to follow it"
                raise _LostError(f"{error}; {advice}") from error
            if pause == _RETRY_SECONDS[0]:
                current_step().warn(f"{error}; retrying")
            time.sleep(pause)
    raise AssertionError


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Let SIGTERM raise an error, as Ctrl-C does, so that a stage that is ended deletes its job."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return

    def end(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
