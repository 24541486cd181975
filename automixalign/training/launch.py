"""Run a training here, or in several processes that torch.distributed joins: gloo, or NCCL on CUDA."""

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from automixalign.storage import files
from automixalign.training.job import JOB, RESULT, WORLD, Job, Training, error_of
from automixalign.training.nodes import train_job
from automixalign.training.train import recorded


def train(training: Training) -> dict[str, Any]:
    """Train a specialist or a generalist; write the model and a log of every step.

    Returns:
        Metadata: steps, pairs, tokens, seconds; of a generalist also the method and the last task weights.

    Raises:
        CacheError: a cache is missing, incomplete or belongs to other data.
        TrainingError: the loss became not finite.
    """
    return recorded(launch(training), training.trajectory)


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
    alone = processes * nodes == 1 or WORLD in os.environ
    if nodes > 1 and not alone:
        return train_job.run(training)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        return training.run(scratch) if alone else _in_processes(training, processes, scratch)


def _in_processes(training: Training, processes: int, scratch: Path) -> dict[str, Any]:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    files.write_text(scratch / JOB, Job.of(training).model_dump_json())
    try:
        start_processes(processes, ["--module", "automixalign.training.worker", str(scratch)])
    except ChildFailedError as failure:
        raise error_of(scratch, failure) from failure
    result: dict[str, Any] = files.read_json(scratch / RESULT)
    return result


def start_processes(processes: int, command: list[str]) -> None:
    """Run a Python command in several processes that share the cores and find each other by torch.distributed.

    `accelerate launch`, within this process: the system then ends the workers when this one is killed.

    Raises:
        ChildFailedError: one of them failed.
    """
    import torch
    from accelerate.commands.launch import launch_command, launch_command_parser
    from accelerate.utils import patch_environment

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
    with _left_as_it_was(), patch_environment(OMP_NUM_THREADS=str(threads)):
        launch_command(arguments)


@contextmanager
def _left_as_it_was() -> Iterator[None]:
    """The launcher leaves signal handlers of its own behind, and torch a variable in the environment."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    environment = dict(os.environ)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
