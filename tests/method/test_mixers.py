"""The algorithm, against examples worked out by hand and against its own definitions."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from automixalign.method.mixer import Draws, Mixer, register
from automixalign.method.mixers import registered_mixers
from tests.method.needed_options import needed_options

MIXERS = registered_mixers()
TASKS = ("a", "b", "c", "d")
ADAPTIVE = ("ama-r", "ama-s")


def make(name: str, sizes: list[int], **options: Any) -> Mixer:
    named = {TASKS[task]: size for task, size in enumerate(sizes)}
    return MIXERS[name](named, 0, **needed_options(name, named) | options)


@pytest.mark.parametrize("name", MIXERS)
def test_weights_are_a_distribution_and_draws_are_reproducible(name: str) -> None:
    mixer, other = make(name, [5, 20, 7]), make(name, [5, 20, 7])
    for step in range(20):
        assert mixer.weights().sum() == pytest.approx(1)
        tasks = mixer.draw(step, 8)
        assert np.array_equal(tasks, other.draw(step, 8))
        assert len(tasks) == len(mixer.example_weights(tasks)) == 8
        counts = np.bincount(tasks, minlength=3)
        for one in (mixer, other):
            one.update(counts * np.array([0.5, 0.1, 2.0]), counts)


def test_ama_r_follows_a_hand_computed_example() -> None:
    """Two tasks, eta = ln 2, c = 0.2; mean excesses (1, 0), (0, 1), (2, 0)."""
    mixer = make("ama-r", [4, 4], eta=float(np.log(2)), c=0.2)
    expected_q = [(1 / 2, 1 / 2), (2 / 3, 1 / 3), (1 / 2, 1 / 2), (4 / 5, 1 / 5)]
    for (q, _), sums in zip(expected_q, [(4, 0), (0, 4), (8, 0), None], strict=True):
        assert mixer.weights() == pytest.approx([0.8 * q + 0.1, 0.8 * (1 - q) + 0.1])
        if sums is not None:
            mixer.update(np.array(sums, dtype=float), np.array([4, 4]))


def test_ama_r_is_group_dro() -> None:
    """kohpangwei/group_DRO's rule written out: adv_probs *= exp(step_size * loss); normalise."""
    generator = np.random.default_rng(1)
    mixer = make("ama-r", [9, 9, 9], eta=0.3, c=0.0)
    adv_probs = np.ones(3) / 3
    for _ in range(50):
        counts = np.array([3, 3, 3])
        excess = generator.exponential(size=3)
        adv_probs = adv_probs * np.exp(0.3 * excess)
        adv_probs = adv_probs / adv_probs.sum()
        mixer.update(excess * counts, counts)
        assert mixer.weights() == pytest.approx(adv_probs)


def test_ama_s_estimates_the_excess_without_bias() -> None:
    """The mean of lambda_hat over many draws is within five standard errors of the true excess."""
    mixer = make("ama-s", [10, 10, 10], eta=1.0, c=0.3)
    mixer.load({**mixer.state(), "log_q": np.log([0.7, 0.2, 0.1]).tolist()})
    truth = np.array([0.2, 1.0, 3.0])
    estimates = []
    for step in range(4000):
        before = mixer.state()
        counts = np.bincount(mixer.draw(step, 8), minlength=3)
        mixer.update(counts * truth, counts)
        estimates.append(np.array(mixer.state()["log_q"]) - np.array(before["log_q"]))
        mixer.load(before)
    # log q is normalised, so gains are known up to a constant: compare differences between tasks.
    differences = np.array(estimates)[:, 1:] - np.array(estimates)[:, :1]
    error = differences.std(axis=0) / np.sqrt(len(differences))
    assert np.all(np.abs(differences.mean(axis=0) - (truth[1:] - truth[0])) < 5 * error)
    assert np.all(error < 0.05)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_nothing_overflows_and_no_task_falls_below_its_share(name: str) -> None:
    mixer = make(name, [3, 3, 3, 3], eta=0.5, c=0.1)
    counts = np.array([2, 2, 2, 2])
    for _ in range(1000):
        mixer.update(np.array([1e4, 0.0, 5e3, 1.0]) * counts, counts)
        alpha = mixer.weights()
        assert np.isfinite(alpha).all()
        assert alpha.min() >= 0.1 / 4 * (1 - 1e-12)
        assert alpha.sum() == pytest.approx(1)
    assert mixer.weights()[0] == pytest.approx(0.9 + 0.1 / 4)


def test_many_steps_of_large_excess() -> None:
    """Then one huge gain of the other task brings them level: nothing was lost to rounding."""
    mixer = make("ama-r", [3, 3], eta=0.03)
    counts, excess = np.array([1, 1]), np.array([1e5, 0.0])
    for _ in range(100_000):
        mixer.update(excess, counts)
    assert mixer.state()["log_q"] == [0.0, pytest.approx(-3e8, rel=1e-9)]
    assert mixer.weights() == pytest.approx([0.95, 0.05])
    mixer.load({**mixer.state(), "log_q": [0.0, -3e8]})
    mixer.update(np.array([0.0, 1e10]), counts)
    assert mixer.weights() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("name", ADAPTIVE)
def test_eta_zero_is_uniform(name: str) -> None:
    mixer = make(name, [3, 30, 300], eta=0.0)
    for _ in range(100):
        mixer.update(np.array([5.0, 1.0, 0.0]), np.array([2, 2, 2]))
    assert mixer.weights() == pytest.approx(np.full(3, 1 / 3))


@pytest.mark.parametrize("name", ADAPTIVE)
def test_permuting_the_tasks_permutes_the_weights(name: str) -> None:
    order = np.array([2, 0, 1])
    left, right = make(name, [5, 6, 7], eta=0.2), make(name, [7, 5, 6], eta=0.2)
    for step in range(30):
        excess = np.random.default_rng(step).exponential(size=3)
        counts = np.array([1, 2, 3])
        left.update(excess * counts, counts)
        right.update((excess * counts)[order], counts[order])
    assert right.weights() == pytest.approx(left.weights()[order])


@pytest.mark.parametrize("name", [name for name, cls in MIXERS.items() if cls.every_task_each_step])
@pytest.mark.parametrize("batch", [3, 7, 8, 9])
def test_the_weighted_mean_is_the_mixture_of_task_means(name: str, batch: int) -> None:
    """(1/B) sum w_z e(z) = sum_i alpha_i mean_i(e), also where B is no multiple of k."""
    mixer = make(name, [5, 5, 5])
    mixer.update(np.array([9.0, 1.0, 0.0]), np.array([3, 3, 3]))
    for step in range(4):
        tasks = mixer.draw(step, batch)
        excess = np.random.default_rng(step).exponential(size=batch)
        means = np.array([excess[tasks == task].mean() for task in range(3)])
        assert (mixer.example_weights(tasks) * excess).mean() == pytest.approx(mixer.weights() @ means)


def test_standard_shows_every_pair_once_an_epoch() -> None:
    mixer, draws = make("standard", [3, 8, 5]), Draws([3, 8, 5], 0)
    for _ in range(3):
        pairs = set()
        for step in range(4):
            start = sum(draws.drawn) // 4
            pairs |= {(task, draws.next(task)) for task in mixer.draw(start, 4).tolist()}
            assert step == start % 4
        assert len(pairs) == 16


def test_draws_go_through_a_task_in_a_new_order_each_epoch() -> None:
    draws = Draws([50], 3)
    epochs = [[draws.next(0) for _ in range(50)] for _ in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    resumed = Draws([50], 3)
    resumed.drawn = [75]
    assert [resumed.next(0) for _ in range(75)] == epochs[1][25:] + epochs[2]


def test_allocate_gives_each_task_its_share_of_the_pairs() -> None:
    """1 + alpha_i (B - k), rounded up or down; the objective stays the mixture of the tasks' means."""
    mixer = make("ama-r", [10] * 4, c=0.0, allocate=True)
    mixer.load({**mixer.state(), "log_q": np.log([0.7, 0.2, 0.07, 0.03]).tolist()})
    expected = 1 + np.array([0.7, 0.2, 0.07, 0.03]) * 12
    counts = np.array([np.bincount(mixer.draw(step, 16), minlength=4) for step in range(4000)])
    assert (counts.sum(axis=1) == 16).all()
    assert np.abs(counts - expected).max() < 1
    assert counts.mean(axis=0) == pytest.approx(expected, abs=0.03)
    tasks = mixer.draw(5, 16)
    excess = np.random.default_rng(0).exponential(size=16)
    means = np.array([excess[tasks == task].mean() for task in range(4)])
    assert (mixer.example_weights(tasks) * excess).mean() == pytest.approx(mixer.weights() @ means)


@pytest.mark.parametrize(
    ("name", "options", "key"),
    [
        ("uniform", {"eta": 0.1}, "eta"),
        ("ama-r", {"etta": 0.1}, "etta"),
        ("ama-r", {"eta": -0.1}, "eta"),
        ("ama-r", {"raw_loss": 1}, "raw_loss"),
        ("ama-s", {"allocate": True}, "allocate"),
    ],
)
def test_an_impossible_option_is_refused_by_name(name: str, options: dict[str, Any], key: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        make(name, [3, 3], **options)
    assert [fault["loc"] for fault in refusal.value.errors()] == [(key,)]


@pytest.mark.parametrize("name", ADAPTIVE)
def test_raw_loss_replaces_the_excess(name: str) -> None:
    for options, quantity in (({}, "excess"), ({"raw_loss": True}, "loss")):
        mixer = make(name, [3, 3], **options)
        assert mixer.trains_on == mixer.learns_from == quantity


def test_the_base_class_of_one_task_is_standard_mixing() -> None:
    """A specialist trains with it; `Standard` must not be needed for that."""
    mixer, standard = Mixer({"a": 7}, 0), make("standard", [7])
    assert mixer.weights() == standard.weights() == [1.0]
    for step in range(5):
        tasks = mixer.draw(step, 4)
        assert np.array_equal(tasks, standard.draw(step, 4))
        assert np.array_equal(mixer.example_weights(tasks), standard.example_weights(tasks))


def test_a_name_has_one_mixer() -> None:
    with pytest.raises(
        ValueError, match=r"'ama-r' is defined twice: in automixalign\.method\.mixers and tests"
    ):
        register("ama-r")(type("Another", (Mixer,), {"__module__": "tests"}))
