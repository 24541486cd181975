"""An arm against a baseline over the same seeds: difference, interval, p.

All numbers are exact or come from a fixed seed: the same values always give the same page.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

RESAMPLES = 10_000
"""Of the bootstrap."""
EXACT_SEEDS = 16
"""Up to so many, every way of flipping signs is looked at; beyond, as many random ones."""
_SEED = 0
_DIFFERENCE_DIGITS, _MEAN_DIGITS = 15, 10
"""After the point: what differs by rounding alone counts as equal. Means are rounded more coarsely, for
they carry the rounding of all their differences."""


class Estimate(NamedTuple):
    """A mean over seeds and its 95 % bootstrap interval, which one value does not have."""

    mean: float
    low: float | None
    high: float | None

    @property
    def resolved(self) -> bool:
        """Whether there is an interval and 0 is not in it."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


class Paired(NamedTuple):
    """An arm minus a baseline, seed by seed."""

    difference: Estimate
    wins: int
    """Seeds in which the arm is better."""
    ties: int
    seeds: int
    p: float
    """Two-sided, of the sign-flip test; not corrected."""


def interval(values: Sequence[float]) -> Estimate:
    """The mean of independent values and its 95 % interval: percentile bootstrap, none for one value.

    The interval never goes beyond the smallest and the largest value, and is somewhat too narrow for a few.

    Raises:
        ValueError: there is no value, or one is not finite.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0 or not np.isfinite(sample).all():
        raise ValueError(f"an interval takes one or more finite values, not {list(values)}")
    mean = float(sample.mean())
    if sample.size == 1:
        return Estimate(mean, None, None)
    found = stats.bootstrap(
        (sample,), np.mean, n_resamples=RESAMPLES, confidence_level=0.95, method="percentile", rng=_SEED
    ).confidence_interval
    return Estimate(mean, float(found.low), float(found.high))


def compare(mine: Sequence[float], theirs: Sequence[float], *, higher_is_better: bool = False) -> Paired:
    """Compare an arm's values with a baseline's of the same seeds, in the same order.

    Raises:
        ValueError: the lengths differ, there is no value, or one is not finite.
    """
    if len(mine) != len(theirs):
        raise ValueError(f"{len(mine)} values cannot be paired with {len(theirs)}")
    differences = np.subtract(mine, theirs, dtype=np.float64).round(_DIFFERENCE_DIGITS)
    estimate = interval(differences.tolist())
    better = differences > 0 if higher_is_better else differences < 0
    return Paired(
        estimate, int(better.sum()), int((differences == 0).sum()), len(mine), sign_flip(differences.tolist())
    )


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p that paired differences are as likely to have the other sign: 1 for one of them.

    Never below `smallest_p`.
    """
    if len(differences) == 1:
        return 1.0
    found = stats.permutation_test(
        (np.asarray(differences, dtype=np.float64),),
        _mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=2**EXACT_SEEDS,
        alternative="two-sided",
        rng=_SEED,
    )
    return float(found.pvalue)


def _mean(values: Any, axis: int) -> Any:
    return np.mean(values, axis=axis).round(_MEAN_DIGITS)


def smallest_p(seeds: int) -> float:
    """The smallest two-sided p that so many seeds can give, which they do when all of them agree."""
    return 2.0 ** (1 - seeds) if seeds <= EXACT_SEEDS else 2 / (2**EXACT_SEEDS + 1)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's correction: the same keys, in the same order; monotone in p, at most 1."""
    corrected, least = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        least = max(least, min(1.0, (len(p_values) - rank) * p))
        corrected[name] = least
    return {name: corrected[name] for name in p_values}
