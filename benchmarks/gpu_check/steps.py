"""The training step: tokens a second against TRL, what AMA adds, waits for the GPU, and the first loss."""

import math
import statistics
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch.profiler import ProfilerActivity, profile

from automixalign.scoring.scorer import Scorer
from automixalign.system import provenance
from benchmarks.gpu_check.setting import (
    Row,
    Setting,
    attempt,
    attention_ways,
    for_each_way,
    free_memory,
    missing,
    peak_memory,
    reset_peak,
    unavailable,
)
from benchmarks.gpu_check.trainings import Clock, loading_of, train

METHODS = ("standard", "ama-r", "ama-s")


def machine(setting: Setting) -> Iterator[Row]:
    """The machine, the versions, and the models."""
    packages = ("torch", "transformers", "trl", "flash_attn", "liger_kernel", "bitsandbytes")
    versions = ", ".join(f"{name} {'-' if missing(name) else metadata.version(name)}" for name in packages)
    yield Row("machine", note=f"{provenance.machine()}; CUDA {torch.version.cuda}")
    yield Row("versions", note=versions)
    yield Row(setting.size, setting.model().num_parameters() / 1e9, "G parameters")


def speed(setting: Setting) -> Iterator[Row]:
    """Tokens a second and peak memory of our step in each way of attention, and of TRL's in its fastest ways.

    All train the same model on the same pairs, with as many pairs a micro-step and a step, in bf16 autocast,
    with the same optimiser and without gradient checkpointing. TRL has its reference precomputed.
    """
    rows = [row | {"length": _length(row)} for row in setting.rows(setting.warmup + setting.steps)]
    grouped = {"train_sampling_strategy": "group_by_length", "remove_unused_columns": False}
    liger, flash = grouped | {"use_liger_kernel": True}, "flash_attention_2"
    runs: dict[str, tuple[str, str, dict[str, Any]]] = {  # what flex_attention compiles takes longest
        "ours, sdpa": ("standard", "sdpa", {}),
        "trl": ("trl", "sdpa", {}),
        "trl, lengths grouped": ("trl", "sdpa", grouped),
        "trl, lengths grouped, liger": ("trl", "sdpa", liger),
        f"trl, lengths grouped, {flash}": ("trl", flash, grouped),
        f"ours, {flash}": ("standard", flash, {}),
        "ours, flex_attention": ("standard", "flex_attention", {}),
    }
    for name, (kind, way, options) in runs.items():
        reason = unavailable("liger_kernel") if options is liger else attention_ways()[way]
        if reason:
            yield Row(name, note=f"not measured: {reason}")
        else:
            yield from attempt(name, partial(_speed, setting, name, way, rows, kind, **options))


def _speed(
    setting: Setting, name: str, way: str, rows: list[dict[str, Any]], kind: str, **options: Any
) -> Iterator[Row]:
    clock, model = Clock(setting.warmup, begins=reset_peak), setting.model()
    train(setting, model, rows, kind, clock, way, **options)
    rate = clock.tokens / clock.seconds
    speed = 6 * model.num_parameters() * rate / 1e12
    yield Row(name, rate, "tokens/s", f"{speed:.3g} TFLOP/s: 6 N for each token of the pairs")
    yield peak_memory(name)


def _length(row: dict[str, Any]) -> int:
    """Tokens of the longer side."""
    return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def ama(setting: Setting) -> Iterator[Row]:
    """The step of AMA-R and of AMA-S against the standard step, on pairs of one length."""
    longest = setting.median
    rows = [
        row
        | {f"{part}_ids": (row[f"{part}_ids"] * longest)[:longest] for part in ("prompt", "chosen", "rejected")}
        for row in setting.rows(setting.warmup + setting.steps)
    ]
    seconds: dict[str, list[float]] = defaultdict(list)
    for turn in range(setting.rounds):
        for method in METHODS if turn % 2 == 0 else reversed(METHODS):
            clock = train(setting, setting.model(), rows, method).clock
            seconds[method].append(clock.seconds / setting.steps)
            free_memory()
    standard = statistics.median(seconds["standard"])
    spread = (max(seconds["standard"]) - min(seconds["standard"])) / standard
    yield Row("standard", standard, "s/step", f"repeats differ by {spread:.1%}")
    for method in METHODS[1:]:
        yield Row(f"{method} / standard", statistics.median(seconds[method]) / standard, "of its time")


def syncs(setting: Setting) -> Iterator[Row]:
    """How often a step waits for the GPU, and where."""
    rows = setting.rows(setting.warmup + setting.steps)
    for kind in ("standard", "ama-r", "trl"):
        yield from attempt(kind, partial(_syncs, setting, rows, kind))


def _syncs(setting: Setting, rows: list[dict[str, Any]], kind: str) -> Iterator[Row]:
    if not torch.cuda.is_available():
        yield Row(kind, note="not measured: a CPU waits for nothing")
        return
    with ExitStack() as stack:
        caught = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        profiler = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])

        def begin() -> None:
            profiler.start()
            torch.cuda.set_sync_debug_mode("warn")

        def end() -> None:
            torch.cuda.set_sync_debug_mode("default")
            profiler.stop()

        train(setting, setting.model(), rows, kind, Clock(setting.warmup, begin, end))
    calls = Counter(
        {event.key: event.count for event in profiler.key_averages() if event.key.startswith("cuda")}
    )
    if not calls:
        raise RuntimeError("the profiler saw no calls of CUDA; perhaps it does not work with this driver")
    calls = Counter({name: count for name, count in calls.items() if "Synchronize" in name})
    yield Row(kind, calls.total() / setting.steps, "waits/step")
    for name, count in calls.most_common(3):
        yield Row(f"{kind}: {name}", count / setting.steps, "calls/step")
    places = Counter(
        f"{'/'.join(Path(each.filename).parts[-2:])}:{each.lineno}"
        for each in caught
        if "called a synchronizing" in str(each.message)
    )
    for place, count in places.most_common(6):
        yield Row(f"{kind}: {place}", count / setting.steps, "times/step")


def first_loss(setting: Setting) -> Iterator[Row]:
    """The distance of the first loss in bf16 from ln 2; the reference log-probabilities are the scorer's."""
    rows = setting.rows(1)
    yield from for_each_way(lambda way: _first_loss(setting, rows, way))


def _first_loss(setting: Setting, rows: list[dict[str, Any]], way: str) -> Iterator[Row]:
    for what, factor in (("batches of the step", 1), ("other batches", 2)):
        model = setting.model()
        scorer = Scorer(model, factor * 2 * setting.pairs, "auto", loading_of(way))
        yield Row(f"{way}, {what}", distance_from_ln_2(setting, rows, scorer, model, way), "from ln 2")


def distance_from_ln_2(
    setting: Setting, rows: list[dict[str, Any]], scorer: Scorer, policy: Any, way: str = "sdpa"
) -> float:
    """How far the first loss of a policy is from ln 2, if the scorer's model is its reference; trains a step.

    Args:
        rows: the pairs of a step.
        scorer: scores the same weights.
        policy: the model, perhaps with an adapter.
        way: of attention.
    """
    chosen, rejected = scorer.logps(pa.Table.from_pylist(rows))
    scored = [
        row | {"ref_chosen_logps": float(good), "ref_rejected_logps": float(bad)}
        for row, good, bad in zip(rows, chosen, rejected, strict=True)
    ]
    (step,) = train(setting, policy, scored, "standard", way=way).log
    losses = [each for each in step["loss"].values() if each is not None]
    return abs(statistics.fmean(losses) - math.log(2))
