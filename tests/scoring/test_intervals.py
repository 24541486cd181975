"""Intervals: of means by a bootstrap over prompts, of differences of samples, and of runs."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from automixalign.scoring.intervals import (
    Interval,
    bootstrap_means,
    difference_interval,
    mean_interval,
    percentile_interval,
    prompt_numbers,
    student_interval,
)


def interval_of(values: npt.NDArray[np.generic], clusters: npt.ArrayLike) -> Interval:
    return mean_interval(values, clusters, bootstrap_means(values[:, None], clusters, seed=0)[:, 0])


def test_an_interval_of_single_pairs_agrees_with_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(size=400)
    interval = interval_of(values, np.arange(400))
    error = 1.96 * values.std() / 20
    assert interval == pytest.approx((values.mean() - error, values.mean() + error), abs=0.02)
    assert interval_of(values, np.arange(400)) == interval, "the same input gives the same interval"


def test_pairs_of_a_prompt_count_as_one() -> None:
    """Copies of each value, of one prompt, add no information."""
    values = np.random.default_rng(0).normal(size=50)
    single = interval_of(values, np.arange(50))
    assert interval_of(np.repeat(values, 10), np.repeat(np.arange(50), 10)) == pytest.approx(single)


def test_prompts_with_more_pairs_weigh_more() -> None:
    interval = interval_of(np.array([0.0, 1.0, 1.0, 1.0]), ["a", "b", "b", "b"])
    assert interval == (0, 1)


def test_truth_values_that_are_all_equal_have_an_exact_interval() -> None:
    assert interval_of(np.ones(60, bool), np.arange(60)) == pytest.approx((0.025 ** (1 / 60), 1))
    assert interval_of(np.zeros(3), np.arange(3)) == Interval(0, 0)


def test_two_columns_share_their_resamples() -> None:
    """The difference of strongly related values is known far better than either mean."""
    generator = np.random.default_rng(0)
    one = generator.normal(size=100)
    other = one + generator.normal(0.1, 0.01, size=100)
    means = bootstrap_means(np.stack([one, other], axis=1), np.arange(100), seed=0)
    difference = percentile_interval(means[:, 1] - means[:, 0])
    exact = stats.ttest_rel(other, one).confidence_interval()
    assert difference == pytest.approx((exact.low, exact.high), abs=0.001)


def test_a_bootstrap_in_batches_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(30, 2))
    whole = bootstrap_means(values, np.arange(30), seed=1)
    monkeypatch.setattr("automixalign.scoring.intervals._BATCH_VALUES", 700)
    # To rounding: a matrix product may add up in another order in a smaller batch.
    assert bootstrap_means(values, np.arange(30), seed=1) == pytest.approx(whole, abs=1e-12)


def test_equal_prompts_have_one_number() -> None:
    assert prompt_numbers([[1, 2], [3], [1, 2], [1, 2, 0]]) == [0, 1, 0, 2]


def test_without_repeated_prompts_it_is_nearly_welchs() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.normal(0.5, 1.0, 40), generator.normal(0.0, 0.3, 200)
    interval = difference_interval(one, range(40), other, range(40, 240))
    exact = stats.ttest_ind(one, other, equal_var=False).confidence_interval()
    assert interval == pytest.approx((exact.low, exact.high), abs=0.01)


def test_repeated_prompts_add_nothing() -> None:
    """Ten copies of each pair: the interval is that of the pairs themselves."""
    generator = np.random.default_rng(0)
    one, other = generator.normal(0.5, 1.0, 20), generator.normal(0.0, 1.0, 30)
    single = difference_interval(one, range(20), other, range(30))
    numbers = np.repeat(np.arange(20), 10), np.repeat(np.arange(30), 10)
    copied = difference_interval(np.repeat(one, 10), list(numbers[0]), np.repeat(other, 10), list(numbers[1]))
    assert copied == pytest.approx(single)


def test_it_covers_the_difference_in_95_of_100_samples() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        interval = difference_interval(
            generator.normal(1.0, 1.0, 30), range(30), generator.normal(0.8, 2.0, 60), range(60)
        )
        assert interval is not None
        covered += interval[0] <= 0.2 <= interval[1]
    assert 0.92 <= covered / 400 <= 0.98


def test_one_prompt_gives_no_interval() -> None:
    assert difference_interval(np.ones(3), [0, 0, 0], np.ones(2), [1, 2]) is None


@pytest.mark.parametrize(
    ("values", "mean", "reach"),
    [
        ([1.0, 3.0], 2.0, 12.7062 * math.sqrt(2) / math.sqrt(2)),  # t(.975; 1), standard deviation sqrt(2)
        ([1.0, 2.0, 3.0], 2.0, 4.30265 / math.sqrt(3)),  # t(.975; 2), standard deviation 1
    ],
)
def test_the_interval_is_student_s(values: list[float], mean: float, reach: float) -> None:
    assert student_interval(values) == pytest.approx((mean, mean - reach, mean + reach), rel=1e-5)
