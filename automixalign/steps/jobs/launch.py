"""Run a job in this process, or in several processes of this machine (gloo, or NCCL on CUDA)."""

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from automixalign.steps.jobs import worker
from automixalign.steps.jobs.job import JOB, Job, PackedJob, error_of, result_file
from automixalign.storage import files
from automixalign.system.errors import ConfigError


def run_job(job: Job, processes: int) -> list[dict[str, Any]]:
    """Run a job in `processes` processes of this machine.

    Several are started by `accelerate launch` (https://huggingface.co/docs/accelerate/basic_tutorials/launch);
    a single one is this process.

    Returns:
        The result of each process, in their order.

    Raises:
        ConfigError: this machine has fewer GPUs than processes.
        AutoMixAlignError: the error of the process that failed first; a ProcessError if the error came from
            another package. The other processes have ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if processes == 1:
            return [job.run(scratch)]
        return _run_in_processes(job, processes, scratch)


def _run_in_processes(job: Job, processes: int, scratch: Path) -> list[dict[str, Any]]:
    import torch
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    gpus = torch.cuda.device_count()
    if 0 < gpus < processes:  # NCCL refuses two processes on one GPU
        raise ConfigError(
            f"{processes} processes need a GPU each, and torch sees {gpus}: lower 'training.processes' or "
            "'evaluation.processes', or give the stage more accelerators"
        )
    files.write_text(scratch / JOB, PackedJob.of(job).model_dump_json())
    try:
        start_processes(processes, ["--module", worker.__name__, str(scratch)])
    except ChildFailedError as failure:
        raise error_of(scratch, failure) from failure
    return [files.read_json(scratch / result_file(rank)) for rank in range(processes)]


def start_processes(processes: int, command: list[str]) -> None:
    """Run a Python command in several processes that share the cores, joined by torch.distributed.

    `accelerate launch` runs within this process, so the system ends the workers when this one is killed.

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
    with _restored_process_state(), patch_environment(OMP_NUM_THREADS=str(threads)):
        launch_command(arguments)


@contextmanager
def _restored_process_state() -> Iterator[None]:
    """Undo what the launcher leaves behind: its signal handlers, and torch's environment variable."""
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
