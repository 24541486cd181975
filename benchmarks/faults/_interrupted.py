"""Trainings that meet a fault on their way, each in a process of its own, and what becomes of them."""

import atexit
import json
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from botocore.awsrequest import AWSConnection

from automixalign.config.methods import GeneralistSettings
from automixalign.storage import files, s3
from automixalign.training import checkpoints
from automixalign.training.averaging import IterateAverage
from automixalign.training.checkpoints import Checkpoints
from automixalign.training.launch import train as train_it
from automixalign.training.stored_checkpoints import StoredCheckpoints
from automixalign.training.train import GeneralistTraining
from automixalign.training.trainer import MixingTrainer
from benchmarks import tiny
from benchmarks.faults.case import UnexpectedError

STEPS = 6
EVERY = 2
KILLED = -signal.SIGKILL
BATCHES, LOG = "batches.jsonl", "log"
POINTS: dict[str, tuple[Any, str]] = {
    "micro-step": (MixingTrainer, "compute_loss"),
    "step's end": (MixingTrainer, "finish_step"),
    "optimiser saved": (MixingTrainer, "_save_rng_state"),
    "average saved": (IterateAverage, "save"),
    "all but sealed": (checkpoints, "_files"),
    "sealed": (Checkpoints, "add"),
    "vanished": (Path, "rename"),
    "removed": (Checkpoints, "remove"),
    "bytes sent": (AWSConnection, "send"),
    "file uploaded": (s3.Prefix, "upload"),
    "object written": (s3.Prefix, "write"),
    "object deleted": (s3.Prefix, "delete"),
}
_ROOM = 14 << 10
"""Bytes of a file: too few for the random state or the optimiser's, and enough for a log."""


class Fault(NamedTuple):
    """What happens in a training after a function was called."""

    point: str
    """One of `POINTS`."""
    call: int
    """... after so many calls of it."""
    what: str = "kill"
    """`kill`: the process dies, as SIGKILL from outside would have it; `full`: the disk takes no more."""
    group: int | None = None
    """Kill another's process group instead."""

    def happen(self) -> None:
        if self.what == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (_ROOM, resource.RLIM_INFINITY))
        elif self.group is not None:
            os.killpg(self.group, signal.SIGKILL)
        else:
            os.kill(os.getpid(), signal.SIGKILL)


def settings(method: str, lora: bool, micro_batch: int, **options: Any) -> str:
    """`GeneralistSettings` as JSON of a training of `STEPS` steps with a checkpoint every `EVERY`."""
    training = {
        "batch_size": 4,
        "micro_batch_size": micro_batch,
        "learning_rate": 1e-2,
        "nll_weight": 0.1,
        "lora": {"rank": 2, "alpha": 4} if lora else None,
        "checkpoint_every": EVERY,
    }
    given = {"method": method, "eta": 0.5, **options}
    settings = {"seed": 3, "training": training, "budget": {"steps": STEPS}, "method": given}
    return json.dumps({**settings, "extensions": ["benchmarks.mixers"]})


EVERYTHING = settings(
    "ama-r-ablation", True, 2, average_iterates=0.7, average_alpha=True, anneal=True, discount=0.9
)
"""With everything that a checkpoint can hold."""


@cache
def scratch() -> Path:
    """A folder for what is made once; gone when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="ama-interrupted-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def places() -> dict[str, Any]:
    """What a generalist is trained from; the policy drops attention, so that the random state matters."""
    folder = scratch() / "places"
    model, data, reference_logps = folder / "model", folder / "data", folder / "reference_logps"
    tiny.write_base_model(model)
    tiny.write_data(model, data)
    tiny.write_references(data, model, reference_logps)
    losses = tiny.write_losses(data, reference_logps, folder / "losses")
    config = files.read_json(model / "config.json")
    files.write_json(model / "config.json", {**config, "attention_dropout": 0.3})
    return {"data": data, "reference_logps": reference_logps, "losses": losses, "base_model": model}


def start(
    given: str, output: Path, fault: Fault | None = None, environment: Mapping[str, str] | None = None
) -> Any:
    """Start a training into `output` in a fresh process, with its checkpoints there unless told otherwise."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipelines.local.preloaded", __name__])
    output.mkdir(exist_ok=True)
    process = context.Process(target=_run, args=(given, places(), output, fault, environment or {}))
    process.start()
    return process


def train(
    given: str, output: Path, fault: Fault | None = None, environment: Mapping[str, str] | None = None
) -> int:
    """Run a training as `start` does; return its exit code."""
    process = start(given, output, fault, environment)
    process.join()
    return int(process.exitcode)


def _run(
    given: str, places: dict[str, Any], output: Path, fault: Fault | None, environment: Mapping[str, str]
) -> None:
    with (output / LOG).open("a") as log_of_it:
        for stream in (1, 2):
            os.dup2(log_of_it.fileno(), stream)
    torch.set_num_threads(1)
    os.environ |= {checkpoints.PLACE: str(output / "checkpoints"), **environment}
    _log_batches(output / BATCHES)
    _wait_for_uploads()
    if fault is not None:
        _after(fault)
    checked = GeneralistSettings.model_validate_json(given)
    log = output / "trajectory.jsonl"
    train_it(GeneralistTraining(settings=checked, **places, output=output / "model", trajectory=log))


def _log_batches(log: Path) -> None:
    collate = MixingTrainer._collate

    def logged(self: MixingTrainer, rows: list[dict[str, Any]]) -> Any:
        with log.open("a") as out:
            drawn = [[row["task"], row["prompt_ids"], row["chosen_ids"]] for row in rows]
            out.write(json.dumps([self.state.global_step, drawn]) + "\n")
        return collate(self, rows)

    MixingTrainer._collate = logged  # type: ignore[method-assign]


def _wait_for_uploads() -> None:
    """So small a training would be over before its first checkpoint is stored."""
    add = StoredCheckpoints.add

    def waits(self: StoredCheckpoints, checkpoint: Path) -> None:
        add(self, checkpoint)
        if self._upload is not None:
            self._upload.result()

    StoredCheckpoints.add = waits  # type: ignore[method-assign]


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


class Outcome(NamedTuple):
    """All that a training makes."""

    model: dict[str, str]
    """Digests of the model's files."""
    trajectory: str
    batches: dict[int, list[Any]]
    """The micro-batches that each step drew last."""


def outcome(*outputs: Path, accumulation: int = 2) -> Outcome:
    """What came of a training that was started in these folders one after the other."""
    model = {file.name: files.digest(file) for file in sorted((outputs[-1] / "model").iterdir())}
    batches: dict[int, list[Any]] = {}
    for output in outputs:
        for step, rows in files.read_jsonl(output / BATCHES) if (output / BATCHES).exists() else []:
            batches.setdefault(step, []).append(rows)
    last = {step: rows[-accumulation:] for step, rows in batches.items()}
    return Outcome(model, (outputs[-1] / "trajectory.jsonl").read_text(), last)


@cache
def undisturbed(given: str, accumulation: int = 2) -> Outcome:
    """What comes of a training that nobody disturbs."""
    folder = scratch() / f"whole-{len(list(scratch().iterdir()))}"
    if code := train(given, folder):
        raise RuntimeError(f"the undisturbed training ended with {code}:\n{(folder / LOG).read_text()}")
    return outcome(folder, accumulation=accumulation)


def same_as_undisturbed(given: str, outputs: Sequence[Path], accumulation: int = 2) -> None:
    """Compare to the bit.

    Raises:
        UnexpectedError: something differs.
    """
    seen, wanted = outcome(*outputs, accumulation=accumulation), undisturbed(given, accumulation)
    for part in Outcome._fields:
        if getattr(seen, part) != getattr(wanted, part):
            raise UnexpectedError(f"another {part} than that of the undisturbed training")
    if sorted(seen.batches) != list(range(STEPS)):
        raise UnexpectedError(f"it drew for the steps {sorted(seen.batches)}")


def first_step(output: Path, before: int = 0) -> int:
    """The first step that was drawn for after the first `before` micro-batches: where a start began."""
    return int(files.read_jsonl(output / BATCHES)[before][0])
