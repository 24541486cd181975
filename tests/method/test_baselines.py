"""The mixers of `method/baselines`, against the papers' rules written out again, and hand-made examples."""

from typing import Any

import numpy as np
import pytest

from automixalign.config.experiment import parse_experiment
from automixalign.method.mixer import Draws, Mixer
from automixalign.method.mixers import registered_mixers
from automixalign.system.errors import ConfigError

SIZES = {"a": 80, "b": 15, "c": 5}


def make(name: str, **options: Any) -> Mixer:
    return registered_mixers()[name](SIZES, 0, **options)


def test_only_the_ratios_of_static_weights_count() -> None:
    weights = {"a": 1e308, "b": 1e308, "c": 5e307}
    assert make("static", weights=weights).weights() == pytest.approx([0.4, 0.4, 0.2])


def test_static_weights_go_to_their_tasks_in_any_order() -> None:
    assert make("static", weights={"c": 3, "a": 0, "b": 1}).weights().tolist() == [0, 0.25, 0.75]


@pytest.mark.parametrize(
    ("tau", "shares"), [(0, [1 / 3, 1 / 3, 1 / 3]), (0.5, [0.5942, 0.2573, 0.1485]), (1, [0.8, 0.15, 0.05])]
)
def test_temperature_takes_a_power_of_the_size(tau: float, shares: list[float]) -> None:
    """The square roots of 80, 15 and 5 are 8.944, 3.873 and 2.236; their sum is 15.053."""
    assert make("temperature", tau=tau).weights() == pytest.approx(shares, abs=1e-4)


def test_each_step_holds_the_shares_rounded_up_or_down() -> None:
    mixer = make("static", weights={"a": 0.7, "b": 0.3, "c": 0})
    counts = np.array([np.bincount(mixer.draw(step, 8), minlength=3) for step in range(4000)])
    assert (counts.sum(axis=1) == 8).all()
    assert np.unique(counts[:, 0]).tolist() == [5, 6]
    assert counts.mean(axis=0) == pytest.approx([5.6, 2.4, 0], abs=0.03)
    assert mixer.example_weights(mixer.draw(0, 8)).tolist() == [1.0] * 8


def test_gr_dpo_follows_algorithm_1_of_its_paper() -> None:
    """Steps of one pair, as in the paper (arXiv 2405.20304): alpha_g grows by exp(eta N l / N_g)."""
    mixer, random = make("gr-dpo", eta=0.02), np.random.default_rng(0)
    alpha = np.full(3, 1 / 3)
    for step in range(300):
        (group,) = mixer.draw(step, 1).tolist()
        size = list(SIZES.values())[group]
        assert mixer.example_weights(np.array([group])) == pytest.approx([alpha[group] * 100 / size])
        loss = random.exponential()
        alpha[group] *= np.exp(0.02 * 100 * loss / size)
        alpha /= alpha.sum()
        totals, counts = np.zeros(3), np.zeros(3, dtype=np.int64)
        totals[group], counts[group] = loss, 1
        mixer.update(totals, counts)
        assert mixer.weights() == pytest.approx(alpha)


def test_gr_dpo_weighs_each_task_by_alpha_whatever_its_size() -> None:
    """Over an epoch of N pairs, (1/N) sum_z alpha_i (N/N_i) L(z) is the mixture of the tasks' mean losses."""
    mixer, draws = make("gr-dpo"), Draws(list(SIZES.values()), 0)
    mixer.load({"log_q": np.log([0.5, 0.2, 0.3]).tolist()})
    losses = [np.random.default_rng(task).exponential(size=size) for task, size in enumerate(SIZES.values())]
    total = 0.0
    for step in range(10):
        tasks = mixer.draw(step, 10)
        total += mixer.example_weights(tasks) @ [losses[task][draws.next(task)] for task in tasks.tolist()]
    assert total / 100 == pytest.approx(np.array([0.5, 0.2, 0.3]) @ [each.mean() for each in losses])


def test_gr_dpo_adjusts_for_small_tasks() -> None:
    """Equal losses, eta ln 2, C = 2: task i grows by 2^(2 / sqrt N_i)."""
    mixer = make("gr-dpo", eta=float(np.log(2)), adjustment=2.0)
    mixer.update(np.array([8.0, 1.5, 0.5]), np.array([8, 1, 1]))
    grown = 2 ** (1 + 2 / np.sqrt([80, 15, 5]))
    assert mixer.weights() == pytest.approx(grown / grown.sum())


def test_pike_follows_algorithm_1_of_its_paper() -> None:
    """arXiv 2502.06244, line 6: w_k <- w_k exp(zeta1 ||grad||^2 - zeta2 / (2b) sigma^2), then w / ||w||_1."""
    mixer, random = make("pike", zeta1=0.5, zeta2=0.2, every=3, pairs=4), np.random.default_rng(0)
    assert mixer.gradients == (3, 4)
    w = np.full(3, 1 / 3)
    for step in range(50):
        norms, variances = random.exponential(size=3), random.exponential(size=3)
        w *= np.exp(0.5 * norms - 0.2 / (2 * 16) * variances)
        w /= w.sum()
        mixer.learn_gradients(norms, variances, 16)
        assert mixer.weights() == pytest.approx(w)
        counts = np.bincount(mixer.draw(step, 16), minlength=3)
        assert np.abs(counts - 16 * w).max() < 1


def test_pike_leaves_noisy_tasks_and_learns_nothing_from_losses() -> None:
    mixer = make("pike", zeta1=1.0, zeta2=1.0)
    mixer.update(np.array([9.0, 0.0, 0.0]), np.array([1, 1, 1]))
    assert mixer.weights() == pytest.approx([1 / 3] * 3)
    mixer.learn_gradients(np.array([1.0, 1.0, 0.0]), np.array([1.0, 50.0, 1.0]), 8)
    first, noisy, finished = mixer.weights()
    assert first > finished > noisy


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"arithmetic": 1}, "methods.static.weights.format: the task has no weight; 0 leaves it out"),
        (
            {"arithmetic": 1, "format": 1, "forma": 1},
            r"methods.static.weights.forma: there is no such task \(did you mean 'format'\?\); there are: ",
        ),
        ({"arithmetic": 0, "format": 0}, "methods.static.weights: at least one task needs a weight above 0"),
        ({"arithmetic": -1, "format": 2}, "methods.static.weights.arithmetic: .*greater than or equal to 0"),
        (None, "methods.static.weights: Field required"),
    ],
)
def test_static_weights_that_do_not_fit_the_tasks_are_refused(
    experiment_data: dict[str, Any], weights: dict[str, float] | None, message: str
) -> None:
    options = {} if weights is None else {"weights": weights}
    experiment_data["methods"] = [{"method": "static", **options}]
    with pytest.raises(ConfigError, match=message):
        parse_experiment(experiment_data, "test")
