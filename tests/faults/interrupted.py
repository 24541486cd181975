"""Trainings that a fault interrupts, each in its own process, compared to the bit with undisturbed ones."""

import atexit
import json
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from botocore.awsrequest import AWSConnection

from automixalign.config.methods import GeneralistSettings
from automixalign.storage import files, s3
from automixalign.training import trainer
from automixalign.training.checkpoints import folder as checkpoints
from automixalign.training.checkpoints.folder import CheckpointStore
from automixalign.training.checkpoints.s3 import S3CheckpointStore
from automixalign.training.generalist import GeneralistTraining
from automixalign.training.launch import train as launch
from automixalign.training.trainer import MixingTrainer
from benchmarks import tiny

STEPS = 6
EVERY = 2
KILLED = -signal.SIGKILL
BATCHES, LOG = "batches.jsonl", "log"
POINTS: dict[str, tuple[Any, str]] = {
    "micro-step": (MixingTrainer, "compute_loss"),
    "step's end": (MixingTrainer, "finish_step"),
    "random state written": (MixingTrainer, "_save_rng_state"),
    "tensors written": (trainer, "save"),
    "before the seal": (checkpoints, "_files"),
    "sealed": (CheckpointStore, "_seal"),
    "renamed for removal": (Path, "rename"),
    "removed": (CheckpointStore, "remove"),
    "bytes sent": (AWSConnection, "send"),
    "file uploaded": (s3.Prefix, "upload"),
    "object written": (s3.Prefix, "write"),
    "object deleted": (s3.Prefix, "delete"),
}
"""Functions after whose calls a fault may happen."""
_FILE_BYTES = 14 << 10
"""Too few for the random state or the optimiser's, and enough for a log."""


class Fault(NamedTuple):
    """A fault of a training."""

    point: str
    """One of `POINTS`."""
    call: int
    """The fault happens after this call of it."""
    kind: str = "kill"
    """`kill`: the process is killed by SIGKILL; `full`: the disk is full from then on."""
    group: int | None = None
    """The process group that is killed instead."""

    def happen(self) -> None:
        """Kill, or fill the disk."""
        if self.kind == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_BYTES, resource.RLIM_INFINITY))
        elif self.group is not None:
            os.killpg(self.group, signal.SIGKILL)
        else:
            os.kill(os.getpid(), signal.SIGKILL)


def settings(
    method: str, lora: bool, micro_batch: int, validation: Mapping[str, Any] | None = None, **options: Any
) -> str:
    """`GeneralistSettings` as JSON for `STEPS` steps with a checkpoint every `EVERY`."""
    training = {
        "batch_size": 4,
        "micro_batch_size": micro_batch,
        "learning_rate": 1e-2,
        "nll_weight": 0.1,
        "lora": {"rank": 2, "alpha": 4} if lora else None,
        "checkpoint_every": EVERY,
        **(validation or {}),
    }
    scoring = {"seed": 3, "batch_size": 8, "precision": "fp32"} if validation else None
    method_options = {"method": method, "eta": 0.5, **options}
    settings = {"seed": 3, "training": training, "budget": {"steps": STEPS}, "method": method_options}
    return json.dumps({**settings, "scoring": scoring, "plugins": ["benchmarks.mixers"]})


EVERYTHING = settings(
    "ama-r-ablation",
    True,
    2,
    {"validate_every": 1, "keep": "best", "learning_rate": 0.5},
    average_iterates=0.7,
    average_alpha=True,
    anneal=True,
    discount=0.9,
)
"""Everything that a checkpoint can hold."""


@cache
def scratch() -> Path:
    """A folder that is removed when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="ama-interrupted-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def inputs() -> dict[str, Any]:
    """The inputs of a generalist; its policy has dropout, so that the random state matters."""
    world, model = tiny.world(), scratch() / "model"
    shutil.copytree(world.base_model, model)
    config = files.read_json(model / "config.json")
    files.write_json(model / "config.json", {**config, "attention_dropout": 0.3})
    return {**world._asdict(), "base_model": model}


def start(
    settings: str, output: Path, fault: Fault | None = None, environment: Mapping[str, str] | None = None
) -> Any:
    """Start a training in a fresh process, with its checkpoints in `output` by default."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipelines.local.preload", __name__])
    output.mkdir(exist_ok=True)
    process = context.Process(target=_run, args=(settings, inputs(), output, fault, environment or {}))
    process.start()
    return process


def train(
    settings: str, output: Path, fault: Fault | None = None, environment: Mapping[str, str] | None = None
) -> int:
    """Run a training as `start` does; return its exit code."""
    process = start(settings, output, fault, environment)
    process.join()
    return int(process.exitcode)


def _run(
    settings: str, inputs: dict[str, Any], output: Path, fault: Fault | None, environment: Mapping[str, str]
) -> None:
    with (output / LOG).open("a") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    torch.set_num_threads(1)
    os.environ |= {checkpoints.CHECKPOINTS_VARIABLE: str(output / "checkpoints"), **environment}
    _log_batches(output / BATCHES)
    _wait_for_checkpoints()
    if fault is not None:
        _after(fault)
    checked = GeneralistSettings.model_validate_json(settings)
    trajectory = output / "trajectory.jsonl"
    launch(GeneralistTraining(settings=checked, **inputs, output=output / "model", trajectory=trajectory))


def _log_batches(log: Path) -> None:
    collate = MixingTrainer._collate

    def logged(self: MixingTrainer, rows: list[dict[str, Any]]) -> Any:
        drawn = [[row["task"], row["prompt_ids"], row["chosen_ids"]] for row in rows]
        with log.open("a") as out:
            out.write(json.dumps([self.state.global_step, drawn]) + "\n")
        return collate(self, rows)

    MixingTrainer._collate = logged  # type: ignore[method-assign]


def _wait_for_checkpoints() -> None:
    """Otherwise so small a training ends before its first checkpoint is stored."""
    add = CheckpointStore.add

    def add_and_wait(self: CheckpointStore, *arguments: Any) -> None:
        add(self, *arguments)
        self.wait()
        if isinstance(self, S3CheckpointStore) and self._upload is not None:
            self._upload.result()

    CheckpointStore.add = add_and_wait  # type: ignore[method-assign]


def _after(fault: Fault) -> None:
    owner, name = POINTS[fault.point]
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        result = original(*args, **kwargs)
        calls += 1
        if calls == fault.call:
            fault.happen()
        return result

    setattr(owner, name, counted)


class Results(NamedTuple):
    """All results of a training."""

    model: dict[str, str]
    """Digests of the model's files."""
    trajectory: str
    batches: dict[int, list[Any]]
    """The last micro-batches of each step."""


def results(*outputs: Path, accumulation: int = 2) -> Results:
    """The results of a training that was started in these folders, one after the other."""
    model = {file.name: files.digest(file) for file in sorted((outputs[-1] / "model").iterdir())}
    batches: dict[int, list[Any]] = {}
    for output in outputs:
        for step, rows in files.read_jsonl(output / BATCHES) if (output / BATCHES).exists() else []:
            batches.setdefault(step, []).append(rows)
    last = {step: rows[-accumulation:] for step, rows in batches.items()}
    return Results(model, (outputs[-1] / "trajectory.jsonl").read_text(), last)


@cache
def undisturbed(settings: str, accumulation: int = 2) -> Results:
    """The results of an undisturbed training."""
    folder = scratch() / f"undisturbed-{len(list(scratch().iterdir()))}"
    assert train(settings, folder) == 0, (folder / LOG).read_text()
    return results(folder, accumulation=accumulation)


def check_undisturbed(settings: str, *outputs: Path, accumulation: int = 2) -> None:
    """The results equal those of an undisturbed training to the bit."""
    interrupted = results(*outputs, accumulation=accumulation)
    assert interrupted == undisturbed(settings, accumulation)
    assert sorted(interrupted.batches) == list(range(STEPS))


def first_step(output: Path, before: int = 0) -> int:
    """The step of the first micro-batch after the first `before` ones: where a start went on."""
    return int(files.read_jsonl(output / BATCHES)[before][0])
