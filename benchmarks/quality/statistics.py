"""Compares an arm with a baseline over the same seeds: difference, 95 % interval and p.

Every number is exact or comes from a fixed seed, so the same values always give the same page.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

BOOTSTRAP_RESAMPLES = 10_000
EXACT_SEEDS = 16
"""Up to this many seeds the sign-flip test enumerates all signs; beyond, it draws 2^16 at random."""
_RANDOM_SEED = 0
_DIFFERENCE_DIGITS, _MEAN_DIGITS = 15, 10
"""Decimal places below which differences, and means of flipped differences, count as equal."""


class Estimate(NamedTuple):
    """A mean over seeds and its 95 % bootstrap interval; a single value has no interval."""

    mean: float
    low: float | None
    high: float | None

    @property
    def resolved(self) -> bool:
        """Whether the interval exists and excludes 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


class Paired(NamedTuple):
    """An arm minus a baseline, seed by seed."""

    difference: Estimate
    wins: int
    """Number of seeds on which the arm is better."""
    ties: int
    seeds: int
    p: float
    """Two-sided p of the sign-flip test, not corrected."""


def interval(values: Sequence[float]) -> Estimate:
    """The mean of independent values and its percentile bootstrap interval.

    The interval stays within the smallest and largest value, and is somewhat narrow for few values.

    Raises:
        ValueError: there is no value, or one is not finite.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0 or not np.isfinite(sample).all():
        raise ValueError(f"an interval takes one or more finite values, not {list(values)}")
    mean = float(sample.mean())
    if sample.size == 1:
        return Estimate(mean, None, None)
    ends = stats.bootstrap(
        (sample,),
        np.mean,
        n_resamples=BOOTSTRAP_RESAMPLES,
        confidence_level=0.95,
        method="percentile",
        rng=_RANDOM_SEED,
    ).confidence_interval
    return Estimate(mean, float(ends.low), float(ends.high))


def compare(mine: Sequence[float], theirs: Sequence[float], *, higher_is_better: bool = False) -> Paired:
    """Compare an arm's values with a baseline's values of the same seeds, in the same order.

    Raises:
        ValueError: the lengths differ, there is no value, or one is not finite.
    """
    if len(mine) != len(theirs):
        raise ValueError(f"{len(mine)} values cannot be paired with {len(theirs)}")
    differences = np.subtract(mine, theirs, dtype=np.float64).round(_DIFFERENCE_DIGITS)
    better = differences > 0 if higher_is_better else differences < 0
    return Paired(
        difference=interval(differences.tolist()),
        wins=int(better.sum()),
        ties=int((differences == 0).sum()),
        seeds=len(mine),
        p=sign_flip(differences.tolist()),
    )


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p that each paired difference is as likely to have the other sign; 1 for one difference."""
    if len(differences) == 1:
        return 1.0

    def mean(values: Any, axis: int) -> Any:
        return np.mean(values, axis=axis).round(_MEAN_DIGITS)

    return float(
        stats.permutation_test(
            (np.asarray(differences, dtype=np.float64),),
            mean,
            permutation_type="samples",
            vectorized=True,
            n_resamples=2**EXACT_SEEDS,
            alternative="two-sided",
            rng=_RANDOM_SEED,
        ).pvalue
    )


def smallest_p(seeds: int) -> float:
    """The smallest two-sided p that the sign-flip test can give: all seeds agree."""
    return 2.0 ** (1 - seeds) if seeds <= EXACT_SEEDS else 2 / (2**EXACT_SEEDS + 1)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction, with the keys in the same order (scipy has only false discovery rates)."""
    corrected, least = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        least = max(least, min(1.0, (len(p_values) - rank) * p))
        corrected[name] = least
    return {name: corrected[name] for name in p_values}
