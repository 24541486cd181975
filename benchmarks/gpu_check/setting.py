"""What the checks measure: sizes, models and pairs, and the rows that they give."""

import gc
import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from automixalign.models.load import device
from benchmarks import sizes


class Row(NamedTuple):
    """One result of a check: a number, or a note, or the error in its place."""

    what: str
    value: float | None = None
    unit: str = ""
    note: str = ""
    error: str = ""


@dataclass(frozen=True)
class Setting:
    """The sizes of a run.

    Attributes:
        size: the model of the measurements, one of `sizes.SHAPES`.
        small_size: the model of checks in which only exactness counts.
        pairs: of a micro-step.
        micro_steps: of an optimiser step.
        steps: that are timed; `warmup` more come before them.
        longest, median: tokens of the pairs, see `sizes.pairs`.
        lengths: tokens of the longer side in the search for NaN.
        layers: of the model in the search for NaN.
        deadline: of this process, in `time.monotonic()`.
    """

    size: str
    small_size: str
    pairs: int
    micro_steps: int
    steps: int
    warmup: int
    longest: int
    median: int
    lengths: Sequence[int]
    layers: int
    rounds: int
    deadline: float = float("inf")

    def model(self, size: str = "", **options: int) -> Any:
        """A model with random weights in fp32 on the device; `options` go to `sizes.model`."""
        model = sizes.model(size or self.size, device=device().type, **options)
        model.config.max_position_embeddings = 4096
        return model

    def rows(self, steps: int, pairs: int = 0, size: str = "") -> list[dict[str, Any]]:
        """Random pairs for some steps of `pairs` pairs; by default all of a step's pairs."""
        count = steps * (pairs or self.pairs * self.micro_steps)
        vocabulary = sizes.SHAPES[size or self.size]["vocab_size"]
        return sizes.pairs(count, self.longest, vocabulary, median=self.median)

    def time_is_up(self) -> bool:
        """Whether a loop must end now for its rows to count."""
        return time.monotonic() > self.deadline


_ODD = (65, 127, 255, 257, 511, 513, 1023, 1025, 2047, 2049)
FULL = Setting(
    size="1.2B",
    small_size="135M",
    pairs=8,
    micro_steps=2,
    steps=8,
    warmup=3,
    longest=1024,
    median=180,
    lengths=sorted({*range(64, 2113, 32), *_ODD}),
    layers=2,
    rounds=3,
)
SMALL = Setting(
    size="1M",
    small_size="1M",
    pairs=2,
    micro_steps=2,
    steps=2,
    warmup=1,
    longest=48,
    median=12,
    lengths=(64, 65, 96),
    layers=1,
    rounds=1,
)
"""For a CPU: shows that the checks run; its numbers mean nothing."""


def missing(module: str) -> bool:
    """Whether a package is not installed."""
    return importlib.util.find_spec(module) is None


def attempt(what: str, measure: Callable[[], Iterator[Row]]) -> Iterator[Row]:
    """The rows of a measurement; its error is one of them, and it leaves no memory behind."""
    try:
        yield from measure()
    except Exception as error:
        yield Row(what, error=f"{type(error).__name__}: {error}")
    free_memory()


def free_memory() -> None:
    """Return the memory of what is no longer used to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def reset_peak() -> None:
    """Measure the peak of memory anew."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory(name: str) -> Row:
    """The most memory of the GPU that torch has held since `reset_peak`."""
    what = f"{name}: peak memory"
    if not torch.cuda.is_available():
        return Row(what, note="not measured: not on a CPU")
    return Row(what, torch.cuda.max_memory_allocated() / 1e9, "GB")


def now() -> float:
    """Seconds, after all work of the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def unavailable(package: str) -> str:
    """Why a package of kernels for CUDA cannot be used here; "" if it can."""
    if not torch.cuda.is_available():
        return "not on a CPU"
    return f"{package} is not installed" if missing(package) else ""


def attention_ways() -> dict[str, str]:
    """Each way to compute attention, and why it cannot be measured here; "" if it can."""
    return {"sdpa": "", "flex_attention": "", "flash_attention_2": unavailable("flash_attn")}


def for_each_way(measure: Callable[[str], Iterator[Row]]) -> Iterator[Row]:
    """The rows of a measurement for each way of attention; a note for a way that cannot be measured."""
    for way, reason in attention_ways().items():
        if reason:
            yield Row(way, note=f"not measured: {reason}")
        else:
            yield from attempt(way, lambda way=way: measure(way))
