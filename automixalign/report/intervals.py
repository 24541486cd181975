"""Confidence intervals of a model's test metrics, by a bootstrap over prompts."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from automixalign.data.store import TEST, read_split
from automixalign.scoring import caches
from automixalign.scoring.caches import GENERATIONS, Floats
from automixalign.storage import files

_RESAMPLES = 2000
_BATCH_VALUES = 1 << 22
"""Values of the resamples that memory holds at once."""
_SEED = 0


class Interval(NamedTuple):
    """A 95 % confidence interval."""

    low: float
    high: float


def mean_interval(values: Floats | npt.NDArray[np.bool_], clusters: npt.ArrayLike) -> Interval | None:
    """The percentile bootstrap interval of a mean. Whole clusters are drawn, because their values are related.

    If truth values are all equal, every resample is the same. Then it is the exact binomial interval (Clopper
    and Pearson, 1934) with one trial for each cluster.

    Args:
        values: one for each pair; shape (pairs,), numbers or truth values.
        clusters: the cluster of each pair, such as the number of its prompt; shape (pairs,).

    Returns:
        None for fewer than two clusters. The same input always gives the same interval.
    """
    _, numbers = np.unique(np.asarray(clusters), return_inverse=True)
    sizes = np.bincount(numbers).astype(np.float64)
    if len(sizes) < 2:
        return None
    if values.dtype == np.bool_ and (values == values[0]).all():
        exact = stats.binomtest(int(values[0]) * len(sizes), len(sizes)).proportion_ci()
        return Interval(float(exact.low), float(exact.high))
    sums = np.bincount(numbers, weights=values)
    result = stats.bootstrap(
        (sums, sizes),
        lambda sums, sizes, axis: sums.sum(axis=axis) / sizes.sum(axis=axis),
        paired=True,
        n_resamples=_RESAMPLES,
        batch=max(1, _BATCH_VALUES // len(sizes)),
        method="percentile",
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    return Interval(float(result.low), float(result.high))


def task_intervals(
    evaluation: Path, specialist: Path, data: Path, task: str, split: str = TEST
) -> dict[str, Interval | None]:
    """The intervals of a model's metrics on a task; the trained models and the data are taken as fixed.

    Args:
        evaluation: of the model.
        specialist: the evaluation of the task's specialist.
        data: the prepared splits.
        task: the task.
        split: the split of both evaluations.

    Returns:
        Metric -> interval: `loss`, `accuracy`, `margin`, `gap` and `excess`, and `pass_rate` if the model's
        answers were verified.

    Raises:
        CacheError: a table is damaged, or lacks a pair.
    """
    scores = caches.read_scores(evaluation, task, caches.LOSS, "margin")
    ids = scores.column("pair_id").to_pylist()
    others = caches.join(
        caches.read_scores(specialist, task, caches.LOSS), ids, f"specialist of {task}, {split}"
    )
    prompts = _prompt_numbers(data, task, split, ids)
    losses, margins = caches.column(scores, caches.LOSS), caches.column(scores, "margin")
    gaps = losses - caches.column(others, caches.LOSS)
    values = {
        "loss": losses,
        "accuracy": margins > 0,
        "margin": margins,
        "gap": gaps,
        "excess": np.maximum(gaps, 0),
    }
    intervals = {metric: mean_interval(each, prompts) for metric, each in values.items()}
    answers = [row for row in files.read_jsonl(evaluation / GENERATIONS) if row["task"] == task]
    if answers:  # one for each prompt
        passed = np.array([row["passed"] for row in answers], dtype=np.bool_)
        intervals["pass_rate"] = mean_interval(passed, np.arange(len(passed)))
    return intervals


def _prompt_numbers(data: Path, task: str, split: str, pair_ids: Sequence[str]) -> list[int]:
    """A number for each pair, equal for pairs of the same prompt."""
    pairs = caches.join(read_split(data, task, split, ("pair_id", "prompt_ids")), pair_ids, f"{task} {split}")
    numbers: dict[bytes, int] = {}
    return [
        numbers.setdefault(np.asarray(ids, dtype=np.int32).tobytes(), len(numbers))
        for ids in pairs.column("prompt_ids").to_pylist()
    ]
