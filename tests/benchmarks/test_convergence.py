"""The convex benchmark: its certificate, its fit, and the convergence of the package's mixers."""

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks import convergence
from benchmarks.convex_game import GAP, Game, Saddle, certify, check_smoothing, fixed_game, loss, slope, solve

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def game() -> Game:
    return fixed_game()


@pytest.fixture(scope="module")
def saddle(game: Game) -> Saddle:
    return solve(game)


def test_the_gap_is_certified_and_every_task_is_active(game: Game, saddle: Saddle) -> None:
    assert -1e-14 < saddle.gap < GAP
    assert saddle.value == game.excess(saddle.theta).max()
    np.testing.assert_allclose(game.excess(saddle.theta), saddle.value, atol=1e-8)
    assert saddle.alpha.min() > 0.1


def test_no_feasible_point_is_below_the_minimax(game: Game, saddle: Saddle) -> None:
    random = np.random.default_rng(0)
    for size in np.geomspace(1e-8, 10, 400):
        theta = game.project(saddle.theta + size * random.standard_normal(len(saddle.theta)))
        assert np.linalg.norm(theta) <= game.radius + 1e-12
        assert game.excess(theta).max() >= saddle.value - saddle.gap


def test_any_feasible_multipliers_give_a_lower_bound(game: Game, saddle: Saddle) -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        theta = game.project(random.standard_normal(len(saddle.theta)))
        alpha = random.dirichlet(np.ones(len(game.sizes)))
        upper, gap = certify(game, theta, alpha / alpha.sum(), random.random(len(game.task)))
        assert upper - gap <= saddle.value <= upper + saddle.gap


def test_an_infeasible_point_is_refused(game: Game, saddle: Saddle) -> None:
    clip = np.ones(len(game.task))
    with pytest.raises(ValueError, match="ball"):
        certify(game, saddle.theta + game.radius, saddle.alpha, clip)
    with pytest.raises(ValueError, match="simplex"):
        certify(game, saddle.theta, saddle.alpha * 1.1, clip)
    with pytest.raises(ValueError, match="clip"):
        certify(game, saddle.theta, saddle.alpha, clip * 1.1)


def test_smoothing_that_may_move_the_minimax_is_refused(saddle: Saddle) -> None:
    check_smoothing(saddle.alpha, 0.1)
    with pytest.raises(RuntimeError, match="smoothing"):
        check_smoothing(saddle.alpha, 0.5)


def test_specialists_are_minimisers_within_the_ball(game: Game) -> None:
    for task, theta in enumerate(game.specialists):
        features = game.features[game.task == task]
        assert np.linalg.norm(features.T @ slope(features @ theta)) / len(features) < 1e-12
        assert np.linalg.norm(theta) < game.radius
        nearby = theta + 0.01 * np.eye(len(theta))
        assert loss(features @ theta).mean() < loss(nearby @ features.T).mean(axis=1).min()


def test_the_fit_recovers_a_power_law() -> None:
    exponents = np.array([-0.5, -1.0, 0.25])
    values = 3.0 * np.power(np.array(convergence.HORIZONS), exponents[:, None])
    np.testing.assert_allclose(convergence.fit(convergence.HORIZONS, values), exponents, rtol=1e-12)


def test_the_interval_is_that_of_student() -> None:
    found = convergence.interval(np.array([0.0, 2.0]))
    assert found["mean"] == 1
    assert found["high"] == pytest.approx(1 + 12.7062, abs=1e-4)
    assert found["low"] == pytest.approx(1 - 12.7062, abs=1e-4)


def test_a_suboptimality_within_the_gap_is_refused() -> None:
    values = np.full((2, 2, len(convergence.HORIZONS)), 1e-9)
    with pytest.raises(RuntimeError, match="resolved"):
        convergence.curves({"ama-r": values}, 1e-9)


@pytest.mark.parametrize("method", ["ama-r", "ama-s"])
def test_a_short_run_is_reproducible_and_comes_closer(game: Game, saddle: Saddle, method: str) -> None:
    first, again = (convergence.run(game, saddle.value, method, 0, (10, 300)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    start = game.excess(np.zeros_like(saddle.theta)).max() - saddle.value
    assert 0 < first[0, 1] < first[0, 0] < start
    assert not np.array_equal(first, convergence.run(game, saddle.value, method, 1, (10, 300)))


def test_the_methods_train_on_and_learn_from_the_excess() -> None:
    for method, mixer_class in convergence.METHODS.items():
        mixer = mixer_class({"a": 5, "b": 5}, 0, **convergence.mixer_options(method, 2))
        assert mixer.trains_on == "excess"
        assert mixer.learns_from == "excess" or method == "uniform-clip"


def test_the_report_shows_and_plots(
    game: Game, saddle: Saddle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = np.tile(np.power(np.array(convergence.HORIZONS), -0.5), (3, 2, 1))
    values = values * np.array([1.0, 1.1, 1.2])[:, None, None]
    result = convergence.report(game, saddle, convergence.curves({"ama-r": values}, saddle.gap), 1.0)
    convergence.show(result, Console(width=140))
    assert "-0.500 .. -0.500" in capsys.readouterr().out
    convergence.plot(result, tmp_path / "plots" / "curves.png")
    assert (tmp_path / "plots" / "curves.png").stat().st_size > 10_000
