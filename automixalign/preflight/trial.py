"""Time a training: a few optimiser steps of one micro-batch each, whose result is thrown away."""

import math
import resource
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback

from automixalign.config.training import SpecialistSettings
from automixalign.method.mixer import Ints, Mixer
from automixalign.models.load import device
from automixalign.models.trainable import make_trainable
from automixalign.training.train import training_arguments
from automixalign.training.trainer import MixingTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TIMED_STEPS = 3


class Trial(NamedTuple):
    """What a few steps of a training took."""

    seconds: float
    """Of a step of one typical micro-batch: the median of three."""
    peak_bytes: int
    """The largest memory so far: of torch on a GPU, of the whole process on a CPU."""
    trained_parameters: int


def time_steps(
    settings: SpecialistSettings,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    longest: pa.Table,
    typical: pa.Table,
    scratch: Path,
    threads: int,
) -> Trial:
    """Train one step on the longest pairs, which shows the memory, and three steps on typical pairs.

    Args:
        settings: as of a specialist, but `batch_size` is one micro-batch of one process.
        model: the policy; it is changed.
        tokenizer: of the policy.
        longest: the token ids of a micro-batch of pairs, as `read_split` returns them.
        typical: those of as many other pairs.
        scratch: an empty folder.
        threads: of torch on a CPU.
    """
    spec, clock = settings.training, _Clock()
    trainer = MixingTrainer(
        make_trainable(model.to(device()), spec, settings.seed),
        training_arguments(settings, 1 + _TIMED_STEPS, scratch),
        datasets={
            name: Dataset(_with_reference(table, model))
            for name, table in (("longest", longest), ("typical", typical))
        },
        mixer=_FirstTaskOnce({"longest": len(longest), "typical": len(typical)}, settings.seed),
        loss=spec.loss,
        nll_weight=spec.nll_weight,
        trajectory=scratch / "trajectory.jsonl",
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with _threads(threads):
        trainer.train()
    trained = sum(each.numel() for each in trainer.model.parameters() if each.requires_grad)
    return Trial(statistics.median(clock.seconds[1:]), _peak_bytes(), trained)


def _with_reference(pairs: pa.Table, model: "PreTrainedModel") -> pa.Table:
    """The pairs with log-probabilities of a reference model that gives each token the same."""
    logp = -math.log(model.config.get_text_config().vocab_size)
    for side in ("chosen", "rejected"):
        lengths = [len(ids) for ids in pairs.column(f"{side}_ids").to_pylist()]
        pairs = pairs.append_column(f"ref_{side}_logps", pa.array([logp * length for length in lengths]))
    return pairs


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class _FirstTaskOnce(Mixer):
    """Draws the first task in the first step, and the second task later."""

    def draw(self, step: int, batch_size: int) -> Ints:
        return np.full(batch_size, min(step, 1))


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Measures each optimiser step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._started = self._now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(self._now() - self._started)

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()
