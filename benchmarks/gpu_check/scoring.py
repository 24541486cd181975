"""Scoring against the forward pass alone."""

import statistics
from collections.abc import Iterator
from functools import partial

import pyarrow as pa
import torch

from automixalign.models.load import autocast
from automixalign.scoring.logps.forward import side_logps
from automixalign.scoring.scorer import Scorer
from benchmarks.gpu_check.forward import attending, ids_of
from benchmarks.gpu_check.setting import Row, Setting, for_each_way, now
from benchmarks.gpu_check.trainings import loading_of


def scoring(setting: Setting) -> Iterator[Row]:
    """Pairs a second of the product's scorer, and their share of the rate of its forward passes alone."""
    yield from for_each_way(partial(_scoring, setting))


def _scoring(setting: Setting, way: str) -> Iterator[Row]:
    rows = setting.rows(setting.warmup + setting.steps)
    model = setting.model()
    table, size = pa.Table.from_pylist(rows), 4 * setting.pairs
    scorer = Scorer(model, size, "auto", loading_of(way))
    pairs = sorted(ids_of(rows), key=lambda pair: pair.size)
    seconds = {}
    with attending(model, way) as batches_of, torch.inference_mode(), autocast("auto"):
        step = max(1, size // 2)
        batches = [batches_of(pairs[at : at + step]) for at in range(0, len(pairs), step)]

        def alone() -> None:
            for batch in batches:
                side_logps(model, batch)

        seconds["alone"] = _median(alone, setting.rounds)
    seconds["scorer"] = _median(lambda: scorer.logps(table), setting.rounds)
    yield Row(f"{way}: {'packed' if batches[0].trees else 'padded'}", len(rows) / seconds["scorer"], "pairs/s")
    yield Row(f"{way}: of the forward passes alone", seconds["alone"] / seconds["scorer"], "of the rate")
    tokens = sum(pair.size for pair in pairs)
    flops = 2 * model.num_parameters() * tokens / seconds["scorer"]
    yield Row(f"{way}: speed", flops / 1e12, "TFLOP/s", "2 N for each token of the pairs")


def _median(call, repeats: int) -> float:  # type: ignore[no-untyped-def]
    durations = []
    for _ in range(repeats + 1):
        started = now()
        call()
        durations.append(now() - started)
    return statistics.median(durations[1:])
