"""The algorithm, against examples worked out by hand and against its own definitions."""

import json
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from automixalign.method.mixers import MIXERS, Draws, Mixer

ADAPTIVE = ("ama-r", "ama-s")


def make(name: str, sizes: list[int], **options: Any) -> Mixer:
    return MIXERS[name](sizes, 0, **options)


def alphas(mixer: Mixer, excesses: list[tuple[float, float]]) -> list[float]:
    """The first of two tasks' weights before each step and after the last; every step has one pair of each."""
    found = [float(mixer.weights()[0])]
    for excess in excesses:
        mixer.update(np.array(excess), np.array([1, 1]))
        found.append(float(mixer.weights()[0]))
    return found


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
    """The mean of lambda_hat over many draws lies within five standard errors of the true excess."""
    mixer = make("ama-s", [10, 10, 10], eta=1.0, c=0.3)
    mixer.load({**mixer.state(), "log_q": np.log([0.7, 0.2, 0.1]).tolist()})
    truth = np.array([0.2, 1.0, 3.0])
    estimates = []
    for step in range(4000):
        before = mixer.state()
        counts = np.bincount(mixer.draw(step, 8), minlength=3)
        mixer.update(counts * truth, counts)
        gain = np.array(mixer.state()["log_q"]) - np.array(before["log_q"])
        estimates.append(gain)
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


def test_a_million_steps_of_large_excess() -> None:
    """Then one huge gain of the other task brings them level: nothing was lost to rounding."""
    mixer = make("ama-r", [3, 3], eta=0.03)
    counts, excess = np.array([1, 1]), np.array([1e4, 0.0])
    for _ in range(1_000_000):
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
        seen = set()
        for step in range(4):
            start = sum(draws.taken) // 4
            tasks = mixer.draw(start, 4)
            seen |= {(task, draws.next(task)) for task in tasks.tolist()}
            assert step == start % 4
        assert len(seen) == 16


def test_draws_go_through_a_task_in_a_new_order_each_epoch() -> None:
    draws = Draws([50], 3)
    epochs = [[draws.next(0) for _ in range(50)] for _ in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    resumed = Draws([50], 3)
    resumed.taken = [75]
    assert [resumed.next(0) for _ in range(75)] == epochs[1][25:] + epochs[2]


@pytest.mark.parametrize("name", ADAPTIVE)
def test_state_round_trips(name: str) -> None:
    options = {"anneal": True, "discount": 0.9, "average_alpha": True, "optimistic": True}
    mixer, copy = make(name, [4, 4], **options), make(name, [4, 4], **options)
    seen, counts = np.array([3.0, 1.0]), np.array([2, 2])
    mixer.update(seen, counts)
    copy.load(json.loads(json.dumps(mixer.state())))
    for _ in range(5):
        assert np.array_equal(copy.weights(), mixer.weights())
        mixer.update(seen, counts)
        copy.update(seen, counts)


def test_impossible_options_are_refused_by_name() -> None:
    for name, options, key in (
        ("uniform", {"eta": 0.1}, "eta"),
        ("ama-r", {"etta": 0.1}, "etta"),
        ("ama-r", {"eta": -0.1}, "eta"),
        ("ama-s", {"discount": 0.0}, "discount"),
        ("ama-s", {"anneal": 1}, "anneal"),
    ):
        with pytest.raises(ValidationError) as refusal:
            make(name, [3, 3], **options)
        assert [fault["loc"] for fault in refusal.value.errors()] == [(key,)]
    with pytest.raises(ValidationError, match="no excess that 'task_clip'"):
        make("ama-r", [3, 3], raw_loss=True, task_clip=True)
    with pytest.raises(ValidationError, match="'allocate' is AMA-R's"):
        make("ama-s", [3, 3], allocate=True)


def test_anneal_divides_eta_by_the_root_of_the_step() -> None:
    """eta = ln 2, c = 0, excess (1, 0) at every step: q_1 / q_2 = 2^(1 + 1/sqrt 2 + 1/sqrt 3)."""
    ratio = 2 ** (1 + 2**-0.5 + 3**-0.5)
    found = alphas(make("ama-r", [3, 3], eta=float(np.log(2)), c=0.0, anneal=True), [(1, 0)] * 3)
    assert found[-1] == pytest.approx(ratio / (ratio + 1))


def test_optimistic_counts_the_latest_gain_twice_and_takes_it_back() -> None:
    mixer = make("ama-r", [3, 3], eta=0.1, c=0.0, optimistic=True)
    counts, total = np.array([2, 2]), 0.0
    for gain in (1.0, 4.0, 0.0, 2.0):
        mixer.update(np.array([gain, 0.0]) * counts, counts)
        total += gain
        log_q = mixer.state()["log_q"]
        assert log_q[0] - log_q[1] == pytest.approx(0.1 * (total + gain))


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


def test_discount_forgets() -> None:
    """With gains (1, 0) for ever, log(q_1/q_2) tends to eta / (1 - discount); without gains, to nothing."""
    mixer = make("ama-r", [3, 3], eta=0.1, c=0.0, discount=0.9)
    alphas(mixer, [(1, 0)] * 300)
    log_q = mixer.state()["log_q"]
    assert log_q[0] - log_q[1] == pytest.approx(1.0)
    assert alphas(mixer, [(0, 0)] * 300)[-1] == pytest.approx(0.5)


def test_average_alpha_mixes_by_the_mean_so_far() -> None:
    plain = alphas(make("ama-r", [3, 3], eta=0.5), [(1, 0), (3, 0), (0, 9)])
    averaged = alphas(make("ama-r", [3, 3], eta=0.5, average_alpha=True), [(1, 0), (3, 0), (0, 9)])
    assert averaged == pytest.approx([np.mean(plain[: step + 1]) for step in range(4)])


def test_task_clip_clips_the_mean_of_a_task() -> None:
    """The update is shown unclipped sums; a task that is ahead of its specialist gains nothing, not less."""
    clipped = make("ama-r", [3, 3], eta=0.5, task_clip=True)
    assert clipped.learns_from == "difference"
    expected = alphas(make("ama-r", [3, 3], eta=0.5), [(0, 1), (2, 0)])
    assert alphas(clipped, [(-5, 1), (2, -0.1)]) == expected


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize(
    ("options", "trains_on", "learns_from"),
    [
        ({}, "excess", "excess"),
        ({"task_clip": True}, "excess", "difference"),
        ({"unclipped_gradient": True}, "difference", "excess"),
        ({"raw_loss": True}, "loss", "loss"),
    ],
)
def test_ablations_change_what_is_trained_on_and_learned_from(
    name: str, options: dict[str, bool], trains_on: str, learns_from: str
) -> None:
    mixer = make(name, [3, 3], **options)
    assert (mixer.trains_on, mixer.learns_from) == (trains_on, learns_from)
