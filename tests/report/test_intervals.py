"""Confidence intervals of test metrics."""

import numpy as np
import pytest

from automixalign.report.intervals import Interval, mean_interval


def test_an_interval_of_single_pairs_agrees_with_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(size=400)
    interval = mean_interval(values, np.arange(400))
    assert interval is not None
    error = 1.96 * values.std() / 20
    assert interval == pytest.approx((values.mean() - error, values.mean() + error), abs=0.02)
    assert mean_interval(values, np.arange(400)) == interval, "the same input gives the same interval"


def test_pairs_of_a_prompt_count_as_one() -> None:
    """Copies of each value, of one prompt, add no information."""
    values = np.random.default_rng(0).normal(size=50)
    single = mean_interval(values, np.arange(50))
    assert mean_interval(np.repeat(values, 10), np.repeat(np.arange(50), 10)) == pytest.approx(single)


def test_prompts_with_more_pairs_weigh_more() -> None:
    interval = mean_interval(np.array([0.0, 1.0, 1.0, 1.0]), ["a", "b", "b", "b"])
    assert interval == (0, 1)


def test_truth_values_that_are_all_equal_have_an_exact_interval() -> None:
    assert mean_interval(np.ones(60, bool), np.arange(60)) == pytest.approx((0.025 ** (1 / 60), 1))
    assert mean_interval(np.zeros(3), np.arange(3)) == Interval(0, 0)


def test_one_prompt_has_no_interval() -> None:
    assert mean_interval(np.array([0.1, 0.2]), [0, 0]) is None
