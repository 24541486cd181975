"""The registry of metrics, and each metric against its definition."""

from typing import Any

import numpy as np
import pytest

from automixalign.scoring.metrics.registry import (
    NotMeasuredError,
    PairScores,
    answer_values,
    means,
    metric,
    over_tasks,
    pair_values,
    registered_metrics,
)
from automixalign.system.errors import ConfigError

SCORES = PairScores(
    losses=np.array([0.25, 1.0]),
    margins=np.array([1.0, -3.0]),
    chosen_log_ratios=np.array([0.5, -1.5]),
    of_specialist=np.array([0.5, 0.5]),
)
ANSWERS = [
    {"pair_id": "p", "passed": True},
    {"pair_id": "q", "passed": False},
    {"pair_id": "p", "passed": False},
]


def test_metrics_of_pairs() -> None:
    values = pair_values(SCORES)
    expected = {
        "gap": [-0.25, 0.5],
        "excess": [0, 0.5],
        "accuracy": [True, False],
        "loss": [0.25, 1],
        "margin": [1, -3],
        "chosen_drift": [0.5, -1.5],
    }
    assert {name: of.tolist() for name, of in values.items()} == expected
    assert means(values)["gap"] == 0.125


def test_what_needs_the_specialist_is_left_out_without_it() -> None:
    alone = PairScores(SCORES.losses, SCORES.margins, SCORES.chosen_log_ratios)
    assert pair_values(SCORES).keys() - pair_values(alone).keys() == {"gap", "excess"}


def test_metrics_of_answers_are_means_over_prompts() -> None:
    assert answer_values(ANSWERS)["pass_rate"].tolist() == [0.5, 0]
    assert answer_values(ANSWERS[1:])["pass_rate"].dtype == np.bool_
    assert answer_values([]) == {}


def test_pass_at_k_asks_whether_any_of_several_answers_passes() -> None:
    pairs = {"p": [True, False], "q": [False, False], "r": [True, True]}
    made = [{"pair_id": pair, "passed": passed} for pair, each in pairs.items() for passed in each]
    assert answer_values(made)["pass_at_k"].tolist() == [True, False, True]
    assert answer_values(made)["pass_rate"].tolist() == [0.5, 0, 1]
    assert "pass_at_k" not in answer_values(made[::2])
    assert not answer_values([{"pair_id": "p", "passed": None}]), "without a verifier"


def test_the_worst_task_is_the_largest_or_the_smallest() -> None:
    worst, average = over_tasks({"a": {"gap": 0.1, "accuracy": 0.5}, "b": {"gap": -0.2, "accuracy": 0.75}})
    assert worst == {"gap": 0.1, "accuracy": 0.5}
    assert average == pytest.approx({"gap": -0.05, "accuracy": 0.625})


@pytest.mark.usefixtures("own_plugins")
def test_a_metric_of_ones_own() -> None:
    @metric("large", better="lower", title="large losses", format=".1%")
    def large(pairs: PairScores) -> Any:
        return pairs.losses > 0.5

    assert list(registered_metrics())[-1] == "large"
    assert means(pair_values(SCORES))["large"] == 0.5
    assert registered_metrics()["large"].show(0.5) == "50.0%"
    assert over_tasks({"a": {"large": 0.5}}) == ({"large": 0.5}, {"large": 0.5})


@pytest.mark.usefixtures("own_plugins")
def test_only_shares_become_truth_values() -> None:
    @metric("brevity", better="lower", of="answers")
    def brevity(answers: Any) -> float:
        return len(answers)

    values = answer_values(ANSWERS[:1])
    assert (values["brevity"].dtype, values["pass_rate"].dtype) == (int, bool)


@pytest.mark.usefixtures("own_plugins")
def test_a_metric_that_is_wrong_is_named() -> None:
    @metric("sum", better="lower")
    def total(pairs: PairScores) -> Any:
        return pairs.losses.sum()

    with pytest.raises(ConfigError, match=r"the metric sum returns values of the shape \(\) for 2 pairs"):
        pair_values(SCORES)
    with pytest.raises(ValueError, match=r"the format '\.3g' is neither like"):
        metric("other", better="lower", format=".3g")(total.function)
    with pytest.raises(ValueError, match="'a b' is no identifier"):
        metric("a b", better="lower")
    with pytest.raises(ValueError, match="better='smaller': it must be one of 'lower', 'higher', None"):
        metric("other", better="smaller")(total.function)  # type: ignore[arg-type]


@pytest.mark.usefixtures("own_plugins")
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda pairs: pairs.losses * np.nan, "returns np.float64\\(nan\\); it must return finite numbers"),
        (lambda pairs: ["a", "b"], "returns np.str_\\('a'\\); it must"),
        (lambda pairs: pairs.nothing, "fails: AttributeError: .*'nothing'; repair it"),
        (lambda pairs: np.negative(pairs.losses, out=pairs.losses), "fails: ValueError: .*read-only"),
    ],
)
def test_a_metric_that_fails_is_named(function: Any, message: str) -> None:
    metric("odd", better="lower")(function)
    with pytest.raises(ConfigError, match=f"the metric odd {message}"):
        pair_values(SCORES)


@pytest.mark.usefixtures("own_plugins")
def test_a_metric_of_answers_without_a_value_for_one_prompt_is_left_out() -> None:
    @metric("judged", better="higher", of="answers")
    def judged(answers: Any) -> float:
        if "judge" not in answers[0]:
            raise NotMeasuredError
        return float(answers[0]["judge"])

    assert "judged" not in answer_values([{**ANSWERS[0], "judge": 1}, ANSWERS[1]])
