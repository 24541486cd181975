"""The statistics of the quality benchmark against enumeration, hand-computed numbers and what they must be."""

import itertools
import warnings
from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks.quality.statistics import (
    BOOTSTRAP_RESAMPLES,
    EXACT_SEEDS,
    compare,
    holm,
    interval,
    sign_flip,
    smallest_p,
)


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def enumerated(differences: list[int]) -> float:
    """The test's p, by every way of flipping the signs of whole numbers."""
    observed = sum(differences)
    ways = [
        sum(sign * value for sign, value in zip(signs, differences, strict=True))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    side = min(sum(way <= observed for way in ways), sum(way >= observed for way in ways))
    return min(1.0, 2 * side / len(ways))


@pytest.mark.parametrize("scale", [1.0, 0.01, 1 / 150])
@pytest.mark.parametrize("seed", range(4))
def test_sign_flip_is_the_enumerated_one(seed: int, scale: float) -> None:
    """Whole numbers make ties; scaled by a number that is no binary fraction, they stay ties."""
    random = np.random.default_rng(seed)
    for n in (2, 3, 5, 8):
        differences = random.integers(-9, 15, n).tolist()
        found = compare([scale * value for value in differences], [0.0] * n).p
        assert found == pytest.approx(enumerated(differences), abs=1e-15)


def test_more_seeds_than_are_enumerated_are_drawn() -> None:
    assert sign_flip([0.1] * (EXACT_SEEDS + 1)) == pytest.approx(smallest_p(EXACT_SEEDS + 1), rel=3)
    random = np.random.default_rng(0).normal(0.2, 1, EXACT_SEEDS + 4)
    assert sign_flip(random.tolist()) == sign_flip(random.tolist())


@pytest.mark.parametrize(("seeds", "p"), [(1, 1.0), (2, 0.5), (3, 0.25), (5, 0.0625), (10, 0.001953125)])
def test_no_p_is_smaller_than_the_seeds_allow(seeds: int, p: float) -> None:
    assert smallest_p(seeds) == p
    assert compare([0.1 + seed for seed in range(seeds)], [0.0] * seeds).p == p


def test_compare_by_hand() -> None:
    found = compare([0.1, 0.2, 0.5, 0.4], [0.3, 0.2, 0.4, 0.8])
    assert found.difference.mean == pytest.approx((-0.2 + 0 + 0.1 - 0.4) / 4)
    assert (found.wins, found.ties, found.seeds) == (2, 1, 4)
    assert found.p == enumerated([-2, 0, 1, -4])
    assert compare([0.1, 0.2, 0.5, 0.4], [0.3, 0.2, 0.4, 0.8], higher_is_better=True).wins == 1


def test_rounding_alone_is_a_tie() -> None:
    assert compare([0.1 + 0.2], [0.3]).ties == 1


def test_the_interval_is_the_bootstraps() -> None:
    """Compared with our own resampling; exact where only 27 means are possible."""
    values = np.random.default_rng(1).normal(0.5, 1, 10)
    found = interval(values.tolist())
    draws = np.random.default_rng(2).choice(values, (10 * BOOTSTRAP_RESAMPLES, len(values))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02)
    assert interval([0.0, 1.0, 5.0])[1:] == (0.0, 5.0)  # each end has 1/27 of the means, more than 2.5 %
    assert interval(values.tolist()) == found


def test_one_seed_has_no_interval() -> None:
    assert interval([0.25]) == (0.25, None, None)
    found = compare([0.1], [0.3])
    assert (found.difference.low, found.p, found.wins, found.difference.resolved) == (None, 1.0, 1, False)


def test_equal_values() -> None:
    found = compare([0.3, 0.1, 0.7], [0.3, 0.1, 0.7])
    assert found == ((0.0, 0.0, 0.0), 0, 3, 3, 1.0)
    assert not found.difference.resolved
    assert interval([0.1] * 7) == pytest.approx((0.1, 0.1, 0.1))
    assert interval([0.1] * 7).resolved
    assert compare([0.1] * 5, [0.2] * 5).p == 0.0625


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="2 values cannot be paired with 1"):
        compare([0.1, 0.2], [0.1])
    for values in ([], [0.1, float("nan")], [float("inf")]):
        with pytest.raises(ValueError, match="one or more finite"):
            interval(values)


def test_holm_by_hand() -> None:
    """.01 x 4 = .04, .03 x 3 = .09, .04 x 2 = .08 raised to .09, .6 x 1; in the order given."""
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.6}) == pytest.approx(
        {"a": 0.09, "b": 0.04, "c": 0.09, "d": 0.6}
    )
    assert list(holm({"a": 0.04, "b": 0.01})) == ["a", "b"]
    assert holm({"a": 0.7, "b": 0.6}) == {"a": 1.0, "b": 1.0}
    assert holm({"only": 0.03}) == {"only": 0.03}
    assert holm({}) == {}
