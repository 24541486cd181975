"""A job: its way to the processes that share it, and their results and errors."""

import importlib
import os
import signal
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from automixalign.steps.step import current_step
from automixalign.storage import files
from automixalign.system import errors, shortages

JOB = "job.json"
RANK, WORLD_SIZE = "RANK", "WORLD_SIZE"
"""The environment variables in which a launcher passes the number of a process, and of all processes."""
_PACKAGE = __name__.partition(".")[0]


class Job(BaseModel, ABC):
    """What a job reads and writes. Any process that sees the files can do its share."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @abstractmethod
    def run(self, scratch: Path) -> dict[str, Any]:
        """Do this process's share. Every process that shares the job calls this.

        Args:
            scratch: a temporary folder that the processes of a machine share.

        Returns:
            The result of this process, as JSON can hold it.
        """


class PackedJob(BaseModel):
    """A job on its way to other processes, as `job.json`; `worker` runs it."""

    kind: str
    """The job's class, `automixalign.MODULE.CLASS`."""
    job: dict[str, Any]
    stage: str = ""
    name: str = ""

    @classmethod
    def of(cls, job: Job) -> Self:
        """The job of the stage that this process runs."""
        step, kind = current_step(), type(job)
        return cls(
            kind=f"{kind.__module__}.{kind.__name__}",
            job=job.model_dump(mode="json"),
            stage=step.stage,
            name=step.name,
        )

    def load(self) -> Job:
        """The job. A process imports the code of its kind only.

        Raises:
            ConfigError: the kind is no job of this package.
        """
        module, _, name = self.kind.rpartition(".")
        if not module.startswith(f"{_PACKAGE}."):
            raise errors.ConfigError(f"{JOB}: {self.kind!r:.200} is no job of this package")
        kind = getattr(importlib.import_module(module), name)
        if not (isinstance(kind, type) and issubclass(kind, Job)):
            raise errors.ConfigError(f"{JOB}: {self.kind!r:.200} is no job of this package")
        return kind.model_validate(self.job)


def result_file(rank: int) -> str:
    """The file in a job's folder with the result of a process."""
    return f"result-{rank}.json"


def rank() -> int:
    """The number of this process among those that share the work, from the launcher's environment."""
    return int(os.environ.get(RANK, "0"))


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
            stage = files.read_json(folder / JOB)["stage"]
            return errors.ResourceError(
                "one of the processes was killed (SIGKILL), most often because memory ran out; "
                f"{shortages.memory_advice(stage)}"
            )
        return errors.ProcessError(f"one of the processes failed: {failure}")
    name, message = files.read_json(reports[0])
    kind = errors.error_class(name)
    if kind is None:
        return errors.ProcessError(f"one of the processes failed: {name}: {message}")
    return kind(message)
