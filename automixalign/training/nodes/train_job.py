"""Hand a training to Kubeflow Trainer, which runs it on several nodes, and wait for it.

The Kubeflow SDK's client would do less: it has to read the cluster's runtimes, and its jobs have fewer fields.
kfp's TaskConfig hands a pod's settings on as the component says, not as an experiment does.

A TrainJob is called after everything that determines the training. Where the step that waits is started again,
it finds the result, or follows the job that is still running. A job whose step has ended, well or not, is
deleted: the pods of a failed one would be gone anyway, and what its nodes failed with is told by then.
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
_WAITS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0, 60.0)
"""Seconds before each further question to a server that does not answer."""
_GONE_SECONDS = 600.0
"""So long an earlier job of the name may take to be gone."""
_T = TypeVar("_T")


class _LostError(TrainingError):
    """The job may well go on, but nobody can tell."""


def run(training: Training) -> dict[str, Any]:
    """Run a training as a TrainJob on `training.nodes`, and wait for its end.

    Returns:
        What the first process returned. Model and trajectory are where the training wants them.

    Raises:
        ConfigError: there is no cluster, or it takes no such job.
        AutoMixAlignError: what a node failed with first; a TrainingError where that is not known.
        StorageError: inputs or result cannot be stored or fetched.
    """
    request, size = _request(training), training.settings.training
    handover, sources = pack(training)
    exchange = Exchange.of(handover, request.storage)
    if not exchange.is_finished():
        jobs = TrainJobs()
        exchange.send(handover, sources)
        manifest = render(request, f"train-{handover.id}", exchange.uri, size.nodes, size.processes)
        _Following(jobs, exchange, manifest).run()
    return exchange.take(training)


def _request(training: Training) -> TrainJobRequest:
    given = os.environ.get(TRAIN_JOB)
    if given is None:
        nodes = training.settings.training.nodes
        raise ConfigError(
            f"training.nodes: {nodes} nodes need Kubeflow Trainer, and so a cluster: "
            "run it there (`ama submit`), or set training.nodes: 1"
        )
    try:
        return TrainJobRequest.model_validate_json(given)
    except ValidationError as error:
        raise ConfigError(
            f"{TRAIN_JOB} is not what this version writes: {describe(error)}; compile the pipeline again"
        ) from error


class _Following:
    """One TrainJob, from its creation to its end."""

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
                raise  # there is no job, or nobody to delete it
            except BaseException:
                self._delete()
                raise
            self._delete()

    def _start(self) -> None:
        """Create the job, or find the one that an earlier attempt has left running."""
        give_up = time.monotonic() + _GONE_SECONDS
        while True:
            left = _answer_of(lambda: self.jobs.get(self.name))
            if left is None:
                _answer_of(self.exchange.forget_errors)
                if _answer_of(lambda: self.jobs.create(self.manifest)):
                    return self._say(f"was created; {self._where_logs_are()}")
            elif self._is_wanted(left):
                return self._say(f"runs already; {self._where_logs_are()}")
            elif time.monotonic() > give_up:
                raise TrainingError(f"{self.title}: an earlier one of this name is not gone; delete it")
            elif not left["metadata"].get("deletionTimestamp"):
                self._say("is there, but has ended or is not as it is wanted now: it is deleted first")
                _answer_of(lambda: self.jobs.delete(self.name))
            time.sleep(_POLL_SECONDS)

    def _is_wanted(self, job: dict[str, Any]) -> bool:
        """Whether a job that was found is the same one, and goes on."""
        found = job["metadata"]
        if (found.get("annotations") or {}).get(DIGEST) != self.manifest["metadata"]["annotations"][DIGEST]:
            return False
        ended = _conditions(job).keys() & {"Complete", "Failed"}
        return not ended and not found.get("deletionTimestamp")

    def _wait(self) -> None:
        said = ""
        while True:
            job = _answer_of(lambda: self.jobs.get(self.name))
            if job is None and _answer_of(self.exchange.is_finished):
                return  # another run of the same training waited for the same job, and was quicker
            if job is None:
                raise TrainingError(f"{self.title} was deleted before its end; start the step again")
            conditions = _conditions(job)
            if "Complete" in conditions:
                return
            # Kubernetes would start that node alone again; it is kfp that starts all of them, with the step.
            if error := _answer_of(self.exchange.first_error):
                raise error
            if failed := conditions.get("Failed"):
                raise TrainingError(
                    f"{self.title} failed ({failed.get('reason')}): {failed.get('message')}; no node said why: "
                    "it may have been ended for its memory or its time (`cluster.steps`), or found no image"
                )
            if (state := self._state(job, conditions)) != said:
                self._say(state)
                said = state
            time.sleep(_POLL_SECONDS)

    def _state(self, job: dict[str, Any], conditions: dict[str, Any]) -> str:
        if suspended := conditions.get("Suspended"):
            return f"is suspended, as by a queue: {suspended.get('message')}"
        parts = (job.get("status") or {}).get("jobsStatus") or []
        nodes = self.manifest["spec"]["trainer"]["numNodes"]
        running = any(part["name"] == "node" and part.get("ready") for part in parts)
        return f"runs on {nodes} nodes" if running else f"waits for its {nodes} nodes to start"

    def _delete(self) -> None:
        try:
            self.jobs.delete(self.name)
        except (RefusedError, UnavailableError) as error:
            current_step().warn(f"{self.title} is left over and has to be deleted: {error}")

    def _where_logs_are(self) -> str:
        return (
            f"its logs: kubectl logs --namespace {self.jobs.namespace} --container node --prefix --follow "
            f"--selector jobset.sigs.k8s.io/jobset-name={self.name}"
        )

    def _say(self, what: str) -> None:
        logger.info("%s %s", self.title, what)


def _conditions(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Those that hold, by their type."""
    found = (job.get("status") or {}).get("conditions") or []
    return {each["type"]: each for each in found if each["status"] == "True"}


def _answer_of(question: Callable[[], _T]) -> _T:
    """Ask the cluster or S3, and again where they are away for a while."""
    for wait in (*_WAITS, None):
        try:
            return question()
        except (UnavailableError, StorageError) as error:
            if wait is None:
                advice = "the TrainJob may go on: start the step again to follow it"
                raise _LostError(f"{error}; {advice}") from error
            if wait == _WAITS[0]:
                current_step().warn(f"{error}; asking again")
            time.sleep(wait)
    raise AssertionError


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Who ends the step ends the job, too: SIGTERM raises, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread has signals
        return

    def leave(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)

    kept = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, kept)
