"""A training as a job: what it reads and writes, its way to the processes that run it, and what they leave."""

import os
import signal
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from automixalign.config.training import TrainingSettings
from automixalign.steps.step import current_step
from automixalign.storage import files
from automixalign.system import errors, shortages

JOB, RESULT = "job.json", "result.json"
WORLD = "WORLD_SIZE"
"""The environment variable by which a launcher says how many processes there are."""


class Training(BaseModel):
    """What a training reads and writes, so that any process which sees the files can run its part of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    settings: TrainingSettings
    data: Path
    reference_logps: Path
    base_model: Path
    output: Path
    trajectory: Path

    def run(self, scratch: Path) -> dict[str, Any]:
        """Train; called in every process that shares the work.

        Args:
            scratch: a folder that the processes of a machine share, and that is gone afterwards.
        """
        raise NotImplementedError


class Job(BaseModel):
    """A training on its way to other processes, as `job.json`; see `worker.py`."""

    kind: str
    training: dict[str, Any]
    stage: str = ""
    name: str = ""

    @classmethod
    def of(cls, training: Training) -> "Job":
        """The job of the step that this process runs."""
        step = current_step()
        data = training.model_dump(mode="json")
        return cls(kind=type(training).__name__, training=data, stage=step.stage, name=step.name)


def world_size() -> int:
    """How many processes share the work; a launcher such as torchrun or `launch` says so."""
    return int(os.environ.get(WORLD, "1"))


def error_of(folder: Path, failure: Exception) -> errors.AutoMixAlignError:
    """The first error that a worker left in the job's folder; one that was killed left none."""
    left = sorted(folder.glob("error-*.json"), key=lambda file: file.stat().st_mtime_ns)
    if not left:
        codes = {each.exitcode for each in getattr(failure, "failures", {}).values()}
        if -signal.SIGKILL in codes:
            return errors.ResourceError(
                "one of the processes was killed (SIGKILL), most often because memory ran out; "
                f"{shortages.memory_advice('train_generalist')}"
            )
        return errors.TrainingError(f"one of the processes failed: {failure}")
    name, message = files.read_json(left[0])
    kind = errors.error_class(name)
    if kind is None:
        return errors.TrainingError(f"one of the processes failed: {name}: {message}")
    return kind(message)
