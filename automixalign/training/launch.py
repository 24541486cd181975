"""Run a training in this process, in several processes (gloo, or NCCL on CUDA), or on several nodes."""

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from automixalign.steps.step import current_step
from automixalign.storage import files
from automixalign.training import worker
from automixalign.training.job import JOB, RESULT, WORLD_SIZE, Job, Training, error_of
from automixalign.training.nodes import train_job

_COSTS = (
    "steps",
    "pairs",
    "trained_parameters",
    "seconds",
    "tokens",
    "tokens_per_second",
    "validation_seconds",
    "kept_step",
)


def train(training: Training) -> dict[str, Any]:
    """Train a specialist or a generalist, and record the training in MLflow.

    Returns:
        Steps, pairs, tokens, seconds and machine; with a validation also `kept_step` and `validation_seconds`;
        of a generalist also its method and its last task weights.

    Raises:
        CacheError: a cache is missing, incomplete, or belongs to other data.
        TrainingError: the loss became not finite.
    """
    facts, rows = launch(training), files.read_jsonl(training.trajectory)
    tokens = sum(row["pairs"][task] * (mean or 0) for row in rows for task, mean in row["tokens"].items())
    facts = {**facts, "tokens": round(tokens), "tokens_per_second": round(tokens / max(facts["seconds"], 0.1))}
    record = current_step().record
    record.add_metrics({key: facts[key] for key in _COSTS if key in facts})
    record.add_params({**training.options(), "steps": facts["steps"], "machine": facts["machine"]})
    record.add_curves(training.trajectory)
    record.add_artifact(training.trajectory, "trajectory.jsonl")
    return facts


def launch(training: Training) -> dict[str, Any]:
    """Run a training in `training.processes` processes on each of `training.nodes`.

    Several processes of this machine are started by `accelerate launch`
    (https://huggingface.co/docs/accelerate/basic_tutorials/launch), several nodes by Kubeflow Trainer
    (`nodes/`). A single process, or one that a launcher has started, runs the training itself.

    Returns:
        What the training returned in the first process.

    Raises:
        AutoMixAlignError: the error of the process that failed first; a TrainingError if the error came from
            another package. The other processes have ended.
    """
    processes, nodes = training.settings.training.processes, training.settings.training.nodes
    alone = processes * nodes == 1 or WORLD_SIZE in os.environ
    if nodes > 1 and not alone:
        return train_job.run(training)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        return training.run(scratch) if alone else _run_in_processes(training, processes, scratch)


def _run_in_processes(training: Training, processes: int, scratch: Path) -> dict[str, Any]:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    files.write_text(scratch / JOB, Job.of(training).model_dump_json())
    try:
        start_processes(processes, ["--module", worker.__name__, str(scratch)])
    except ChildFailedError as failure:
        raise error_of(scratch, failure) from failure
    result: dict[str, Any] = files.read_json(scratch / RESULT)
    return result


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
