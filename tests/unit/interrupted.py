"""A training in a process of its own that kills itself at a given point, as SIGKILL would from outside."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from automixalign import checkpoints
from automixalign.averaging import IterateAverage
from automixalign.launch import train
from automixalign.settings import TrainingSettings
from automixalign.train import GeneralistTraining
from automixalign.trainer import MixingTrainer

BATCHES = "batches.jsonl"
POINTS: dict[str, tuple[Any, str]] = {
    "micro-step": (MixingTrainer, "compute_loss"),
    "step's end": (MixingTrainer, "finish_step"),
    "optimiser saved": (MixingTrainer, "_save_rng_state"),
    "before the seal": (checkpoints, "seal"),
    "average saved": (IterateAverage, "save"),
}
"""Where a training can be killed: after the n-th call of this function."""


def run(settings: str, places: dict[str, Any], output: Path, kill: tuple[str, int] | None) -> None:
    """Train a generalist into `output`, with checkpoints there too; log the prompts of each micro-batch drawn.

    Args:
        settings: `TrainingSettings` as JSON.
        places: further fields of a `GeneralistTraining`.
        kill: a point and the number of the call after which to die.
    """
    torch.set_num_threads(1)
    os.environ[checkpoints.FOLDER] = str(output / "checkpoints")
    _log_batches(output / BATCHES)
    if kill is not None:
        _die_after(*POINTS[kill[0]], kill[1])
    checked = TrainingSettings.model_validate_json(settings)
    log = output / "trajectory.jsonl"
    train(GeneralistTraining(settings=checked, **places, output=output / "model", trajectory=log))


def _log_batches(log: Path) -> None:
    collate = MixingTrainer._collate

    def logged(self: MixingTrainer, rows: list[dict[str, Any]]) -> Any:
        with log.open("a") as out:
            drawn = [[row["task"], row["prompt_ids"], row["chosen_ids"]] for row in rows]
            out.write(json.dumps([self.state.global_step, drawn]) + "\n")
        return collate(self, rows)

    MixingTrainer._collate = logged  # type: ignore[method-assign]


def _die_after(owner: Any, name: str, number: int) -> None:
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        result = original(*args, **kwargs)
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, counted)
