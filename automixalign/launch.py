"""Run a training here, or in several processes that torch.distributed joins: gloo, or NCCL on CUDA."""

import os
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from automixalign import errors, files, progress
from automixalign.settings import TrainingSettings

JOB, RESULT = "job.json", "result.json"
_WORLD = "WORLD_SIZE"


class Training(BaseModel):
    """What a training reads and writes, so that any process which sees the files can run its part of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    settings: TrainingSettings
    data: Path
    reference: Path
    base_model: Path
    output: Path
    trajectory: Path

    def run(self) -> dict[str, Any]:
        """Train; called in every process that shares the work."""
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
        step = progress.current()
        data = training.model_dump(mode="json")
        return cls(kind=type(training).__name__, training=data, stage=step.stage, name=step.name)


def world_size() -> int:
    """How many processes share the work; a launcher such as torchrun or `launch` says so."""
    return int(os.environ.get(_WORLD, "1"))


def launch(training: Training) -> dict[str, Any]:
    """Run a training in `training.processes` processes on each of `training.nodes`; return what the first did.

    Several processes of this machine are started by `accelerate launch`
    (https://huggingface.co/docs/accelerate/basic_tutorials/launch), several nodes by Kubeflow Trainer
    (`nodes/`). With one process, or where a launcher has started several already, it simply runs.

    Raises:
        AutoMixAlignError: the error of the process that failed first, once the others are ended; a
            TrainingError where it was not one of ours.
    """
    processes, nodes = training.settings.training.processes, training.settings.training.nodes
    if processes * nodes == 1 or _WORLD in os.environ:
        return training.run()
    if nodes > 1:
        from automixalign.nodes import train_job

        return train_job.run(training)
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        files.write_text(scratch / JOB, Job.of(training).model_dump_json())
        try:
            _accelerate(processes, ["--module", "automixalign.worker", str(scratch)])
        except ChildFailedError as failure:
            raise error_of(scratch, failure) from failure
        result: dict[str, Any] = files.read_json(scratch / RESULT)
        return result


def _accelerate(processes: int, command: list[str]) -> None:
    """`accelerate launch`, within this process: the system then ends the workers when this one is killed."""
    import torch
    from accelerate.commands.launch import launch_command, launch_command_parser

    threads = max(1, torch.get_num_threads() // processes)
    options = {
        "num_processes": processes,
        "num_machines": 1,
        "num_cpu_threads_per_process": threads,
        "main_process_port": 0,
        "mixed_precision": "no",
        "dynamo_backend": "no",
    }
    flags = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    arguments = launch_command_parser().parse_args(["--multi_gpu", *flags, *command])
    with _kept_signals(), _environment({"OMP_NUM_THREADS": str(threads)}):
        launch_command(arguments)


@contextmanager
def _kept_signals() -> Iterator[None]:
    """The launcher sets signal handlers of its own and leaves them behind."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    kept = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


def error_of(folder: Path, failure: Exception) -> errors.AutoMixAlignError:
    """The first error that a worker left in the job's folder."""
    left = sorted(folder.glob("error-*.json"), key=lambda file: file.stat().st_mtime_ns)
    if not left:
        return errors.TrainingError(f"one of the processes failed: {failure}")
    name, message = files.read_json(left[0])
    kind = getattr(errors, name, None)
    if kind is None:
        return errors.TrainingError(f"one of the processes failed: {name}: {message}")
    error: errors.AutoMixAlignError = kind(message)
    return error
