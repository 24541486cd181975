"""A training as a job: its inputs and outputs, its way to the processes that run it, and their results."""

import importlib
import os
import signal
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from automixalign.config.training import TrainingSettings
from automixalign.steps.step import current_step
from automixalign.storage import files
from automixalign.system import errors, shortages

JOB, RESULT = "job.json", "result.json"
WORLD_SIZE = "WORLD_SIZE"
"""The environment variable in which a launcher passes the number of processes."""


class Training(BaseModel, ABC):
    """What a training reads and writes. Any process that sees the files can run its part of the training."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    settings: TrainingSettings
    data: Path
    reference_logps: Path
    base_model: Path
    output: Path
    """The model's folder."""
    trajectory: Path
    """JSONL file with a line for each optimiser step."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The model's name in the leaderboard."""

    @property
    def start_model(self) -> Path:
        """The full model whose weights the policy has before the first step: here the reference model."""
        return self.base_model

    def options(self) -> dict[str, Any]:
        """The settings of this training, by their names in a configuration (`beta`, `lora.rank`)."""
        settings = self.settings
        options = settings.training.model_dump(mode="json", exclude_none=True)
        learning_rate = settings.budget.learning_rate or settings.training.learning_rate
        return {**options, "learning_rate": learning_rate, "seed": settings.seed}

    @abstractmethod
    def run(self, scratch: Path) -> dict[str, Any]:
        """Train. Every process that shares the work calls this.

        Args:
            scratch: a temporary folder that the processes of a machine share.

        Returns:
            The facts of the training: steps, pairs, seconds, ...
        """


class Job(BaseModel):
    """A training on its way to other processes, as `job.json`; `worker` runs it."""

    kind: Literal["SpecialistTraining", "GeneralistTraining"]
    training: dict[str, Any]
    stage: str = ""
    name: str = ""

    @classmethod
    def of(cls, training: Training) -> "Job":
        """The job of the stage that this process runs."""
        step, data = current_step(), training.model_dump(mode="json")
        return cls.model_validate(
            {"kind": type(training).__name__, "training": data, "stage": step.stage, "name": step.name}
        )

    def load(self) -> Training:
        """The training. A process imports the code of its kind only."""
        module = importlib.import_module(f"{__package__}.{self.kind.removesuffix('Training').lower()}")
        kind: type[Training] = getattr(module, self.kind)
        return kind.model_validate(self.training)


def world_size() -> int:
    """How many processes share the work, from the launcher's environment."""
    return int(os.environ.get(WORLD_SIZE, "1"))


def error_of(folder: Path, failure: Exception) -> errors.AutoMixAlignError:
    """The error of the worker that failed first, from the job's folder.

    A worker that was killed leaves no file; `failure`, the launcher's error, then holds the exit codes.
    """
    reports = sorted(folder.glob("error-*.json"), key=lambda file: file.stat().st_mtime_ns)
    if not reports:
        codes = {process.exitcode for process in getattr(failure, "failures", {}).values()}
        if -signal.SIGKILL in codes:
            return errors.ResourceError(
                "one of the processes was killed (SIGKILL), most often because memory ran out; "
                f"{shortages.memory_advice('train_generalist')}"
            )
        return errors.TrainingError(f"one of the processes failed: {failure}")
    name, message = files.read_json(reports[0])
    kind = errors.error_class(name)
    if kind is None:
        return errors.TrainingError(f"one of the processes failed: {name}: {message}")
    return kind(message)
