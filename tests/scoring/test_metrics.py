"""The interval of a difference of two means."""

import numpy as np
import pytest
from scipy import stats

from automixalign.scoring.metrics import difference_interval


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
