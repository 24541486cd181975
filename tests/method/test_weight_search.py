"""The coordinate search: it finds a minimum, counts its tries, and scores nothing twice."""

import math
from collections.abc import Callable, Mapping

import pytest

from automixalign.method.weight_search import coordinate_search

START = {"a": 0.5, "b": 0.5, "c": 0.5}
Score = Callable[[Mapping[str, float]], float]


def worst(**targets: float) -> Score:
    """A worst gap: the largest distance of a weight from its target, in doublings."""
    return lambda weights: max(abs(math.log2(weights[name] / target)) for name, target in targets.items())


def shares(**targets: float) -> Score:
    """A score that a common factor of the weights does not change."""
    by_sum = worst(**{name: target / sum(targets.values()) for name, target in targets.items()})
    return lambda weights: by_sum({name: weight / sum(weights.values()) for name, weight in weights.items()})


def test_it_begins_at_the_start_and_comes_near_the_best_weights() -> None:
    tries = coordinate_search(worst(a=0.2, b=1.1, c=2.0), START, 200, scale=True)
    assert tries[0].weights == START
    assert min(one.score for one in tries) < 1 / 8, "half of the smallest step"
    assert len(tries) < 80


@pytest.mark.parametrize("scale", [True, False])
def test_it_scores_nothing_twice_and_at_most_as_often_as_allowed(scale: bool) -> None:
    scored: list[tuple[float, ...]] = []

    def score(weights: Mapping[str, float]) -> float:
        weights = weights if scale else {name: weight / weights["a"] for name, weight in weights.items()}
        scored.append(tuple(round(math.log2(weight), 6) for weight in weights.values()))
        return shares(a=1.0, b=3.0, c=5.0)(weights)

    tries = coordinate_search(score, START, 12, scale)
    assert len(set(scored)) == len(scored) == len(tries) == 12
    assert min(one.score for one in tries) < tries[0].score


def test_it_is_deterministic() -> None:
    runs = [coordinate_search(shares(a=1.0, b=3.0, c=5.0), START, 30, scale=False) for _ in range(2)]
    assert runs[0] == runs[1]


def test_a_constant_score_ends_the_search() -> None:
    tries = coordinate_search(lambda weights: 1.0, START, 1000, scale=True)
    assert len(tries) == 1 + 3 * 2 * 4, "three steps, in two directions, of three weights and their scale"


def test_one_weight_without_a_scale_has_nothing_to_search() -> None:
    assert len(coordinate_search(lambda weights: 1.0, {"a": 1.0}, 10, scale=False)) == 1
