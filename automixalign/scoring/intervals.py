"""Confidence intervals (95 %): of means over prompts by a bootstrap, of means over runs by Student's t."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from automixalign.scoring.caches import Floats

_LEVEL = 0.95
_RESAMPLES = 2000
_BATCH_VALUES = 1 << 22
"""Numbers of drawn clusters that memory holds at once."""


_SMALLEST = 5e-4
"""Smaller differences look like 0 in three digits, and may come from rounding alone."""


class Interval(NamedTuple):
    """The limits of a confidence interval."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A mean and the limits of its interval."""

    mean: float
    low: float
    high: float

    @property
    def resolved(self) -> bool:
        """Whether the interval excludes 0, and all that three digits show as 0."""
        return self.low > _SMALLEST or self.high < -_SMALLEST


def prompt_numbers(prompts: Iterable[Sequence[int]]) -> list[int]:
    """A number for each prompt, given as token ids; equal prompts have the same number."""
    numbers: dict[bytes, int] = {}
    return [numbers.setdefault(np.asarray(ids, dtype=np.int32).tobytes(), len(numbers)) for ids in prompts]


def bootstrap_means(values: npt.ArrayLike, clusters: npt.ArrayLike, seed: int) -> Floats:
    """The means of 2000 resamples. Whole clusters are drawn, because their values are related.

    All columns share their resamples, so the difference of two columns has the resamples of paired values.

    Args:
        values: one for each pair and column, numbers or truth values; shape (pairs, columns).
        clusters: the cluster of each pair, such as the number of its prompt; shape (pairs,).
        seed: of the draws.

    Returns:
        Shape (resamples, columns).
    """
    _, numbers = np.unique(np.asarray(clusters), return_inverse=True)
    sizes = np.bincount(numbers).astype(np.float64)
    columns = np.asarray(values, dtype=np.float64).T
    sums = np.stack([np.bincount(numbers, weights=column) for column in columns], axis=1)
    count, generator = len(sizes), np.random.default_rng(seed)
    batch = max(1, _BATCH_VALUES // count)
    means = []
    for start in range(0, _RESAMPLES, batch):
        rows = min(batch, _RESAMPLES - start)
        drawn = generator.integers(0, count, (rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)
        means.append(times @ sums / (times @ sizes)[:, None])
    return np.concatenate(means)


def percentile_interval(resampled: Floats) -> Interval:
    """The percentile bootstrap interval, from the resampled values of a statistic; shape (resamples,)."""
    low, high = np.quantile(resampled, ((1 - _LEVEL) / 2, (1 + _LEVEL) / 2))
    return Interval(float(low), float(high))


def mean_interval(values: npt.NDArray[np.generic], clusters: npt.ArrayLike, resampled: Floats) -> Interval:
    """The interval of a mean.

    If truth values are all equal, every resample is the same. Then it is the exact binomial interval (Clopper
    and Pearson, 1934) with one trial for each cluster.

    Args:
        values: shape (pairs,), numbers or truth values.
        clusters: the cluster of each pair; shape (pairs,).
        resampled: a column of `bootstrap_means`.
    """
    from scipy import stats

    if values.dtype == np.bool_ and (values == values[0]).all():
        trials = len(np.unique(np.asarray(clusters)))
        exact = stats.binomtest(int(values[0]) * trials, trials).proportion_ci(_LEVEL)
        return Interval(float(exact.low), float(exact.high))
    return percentile_interval(resampled)


def student_interval(values: Sequence[float]) -> Estimate:
    """Mean of two independent values or more, such as results of runs, and its interval by Student's t."""
    from scipy import stats

    mean = math.fsum(values) / len(values)
    half_width = float(stats.t.ppf((1 + _LEVEL) / 2, len(values) - 1) * stats.sem(values))
    return Estimate(mean, mean - half_width, mean + half_width)


def difference_interval(
    values: Floats, clusters: Sequence[int], others: Floats, other_clusters: Sequence[int]
) -> Interval | None:
    """The 95 % interval of mean(values) - mean(others), two independent samples, by Student's t.

    Args:
        values: of the first sample, shape (pairs,).
        clusters: the cluster of each value, such as the number of its prompt; values of a cluster are related.
        others: of the second sample.
        other_clusters: the clusters of `others`.

    Returns:
        Its limits; None if a sample has fewer than two clusters.
    """
    from scipy import stats

    variance, counts = 0.0, []
    for sample, numbers in ((values, clusters), (others, other_clusters)):
        _, indices = np.unique(numbers, return_inverse=True)
        sums = np.bincount(indices, weights=sample - sample.mean())
        counts.append(len(sums))
        if len(sums) < 2:
            return None
        variance += len(sums) / (len(sums) - 1) * float((sums**2).sum()) / len(sample) ** 2
    mean = float(values.mean() - others.mean())
    half_width = float(stats.t.ppf((1 + _LEVEL) / 2, min(counts) - 1)) * math.sqrt(variance)
    return Interval(mean - half_width, mean + half_width)
