"""Mixers from outside the package, `benchmarks.mixers`, through the door of a user's own: `plugins`."""

import json
from typing import Any

import numpy as np
import pytest

from automixalign.config.experiment import parse_experiment
from automixalign.config.methods import GeneralistSettings
from automixalign.config.plan import Plan
from automixalign.method.mixer import Mixer
from automixalign.method.mixers import registered_mixers
from automixalign.system.errors import ConfigError
from tests.system.processes import run

MODULE = "benchmarks.mixers"
METHODS = ("ama-r-ablation", "ama-s-ablation")
COUNTS = np.array([1, 1])


@pytest.fixture(autouse=True)
def _extended(experiment_data: dict[str, Any]) -> None:
    parse_experiment({**experiment_data, "plugins": [MODULE], "methods": METHODS}, "test")


def make(name: str = "ama-r-ablation", **options: Any) -> Mixer:
    return registered_mixers()[name]({"a": 4, "b": 4}, 0, **options)


def alphas(mixer: Mixer, excesses: list[tuple[float, float]]) -> list[float]:
    """The first of two tasks' weights before each step and after the last; every step has one pair of each."""
    weights = [float(mixer.weights()[0])]
    for excess in excesses:
        mixer.update(np.array(excess), COUNTS)
        weights.append(float(mixer.weights()[0]))
    return weights


def test_settings_alone_bring_the_mixer_into_a_fresh_process(experiment_data: dict[str, Any]) -> None:
    """As in a worker, a node and a pod: nothing but the settings' text arrives there."""
    methods = [{"method": "ama-r-ablation", "discount": 0.5}]
    experiment = parse_experiment({**experiment_data, "plugins": [MODULE], "methods": methods}, "test")
    fingerprints = {key: "" for key in ("base_model", *(task.name for task in experiment.tasks))}
    (settings,) = Plan.of(experiment, fingerprints).generalists
    code = (
        "import sys\n"
        "from automixalign.config.methods import GeneralistSettings\n"
        "from automixalign.method.mixers import registered_mixers\n"
        "assert 'ama-r-ablation' not in registered_mixers()\n"
        "settings = GeneralistSettings.model_validate_json(sys.argv[1])\n"
        "mixer = settings.method.mixer({'a': 3, 'b': 3}, 0)\n"
        "print(type(mixer).__module__, mixer.options.discount)\n"
    )
    assert run(code, settings.model_dump_json()).stdout.split() == [MODULE, "0.5"]
    assert GeneralistSettings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"plugins": ["no.such"]},
            "plugins.0: the module no.such cannot be imported: ModuleNotFoundError",
        ),
        ({"plugins": ["../x"]}, "plugins.0: String should match pattern"),
        (
            {"methods": ["ama-x"]},
            "methods.ama-x: unknown method 'ama-x' .*; there are: standard, .*ama-s-ablation",
        ),
        (
            {"methods": [{"method": "ama-s-ablation", "discount": 0.0}]},
            "methods.ama-s-ablation.discount: Input should be greater than 0",
        ),
        (
            {"methods": [{"method": "ama-s-ablation", "anneal": 1}]},
            "methods.ama-s-ablation.anneal: .*a valid boolean",
        ),
        (
            {"methods": [{"method": "ama-r-ablation", "raw_loss": True, "task_clip": True}]},
            "methods.ama-r-ablation: 'raw_loss' has no excess that 'task_clip'",
        ),
    ],
)
def test_refusals_name_the_key(experiment_data: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_experiment({**experiment_data, "plugins": [MODULE], **changes}, "test")


@pytest.mark.parametrize("name", METHODS)
def test_state_round_trips(name: str) -> None:
    options = {"anneal": True, "discount": 0.9, "average_alpha": True, "optimistic": True}
    mixer, restored = make(name, **options), make(name, **options)
    totals, counts = np.array([3.0, 1.0]), np.array([2, 2])
    mixer.update(totals, counts)
    restored.load(json.loads(json.dumps(mixer.state())))
    for _ in range(5):
        assert np.array_equal(restored.weights(), mixer.weights())
        mixer.update(totals, counts)
        restored.update(totals, counts)


@pytest.mark.parametrize("name", METHODS)
def test_without_an_option_it_is_the_published_method(name: str) -> None:
    ablation, published = make(name), registered_mixers()[name.removesuffix("-ablation")]({"a": 4, "b": 4}, 0)
    for step in range(50):
        assert np.array_equal(ablation.weights(), published.weights())
        totals = np.random.default_rng(step).exponential(size=2)
        ablation.update(totals, COUNTS)
        published.update(totals, COUNTS)


def test_anneal_divides_eta_by_the_root_of_the_step() -> None:
    """eta = ln 2, c = 0, excess (1, 0) at every step: q_1 / q_2 = 2^(1 + 1/sqrt 2 + 1/sqrt 3)."""
    ratio = 2 ** (1 + 2**-0.5 + 3**-0.5)
    weights = alphas(make(eta=float(np.log(2)), c=0.0, anneal=True), [(1, 0)] * 3)
    assert weights[-1] == pytest.approx(ratio / (ratio + 1))


def test_optimistic_counts_the_latest_gain_twice_and_takes_it_back() -> None:
    mixer, total = make(eta=0.1, c=0.0, optimistic=True), 0.0
    for gain in (1.0, 4.0, 0.0, 2.0):
        mixer.update(np.array([gain, 0.0]), COUNTS)
        total += gain
        log_q = mixer.state()["log_q"]
        assert log_q[0] - log_q[1] == pytest.approx(0.1 * (total + gain))


def test_discount_forgets() -> None:
    """With constant gains (1, 0), log(q_1/q_2) tends to eta / (1 - discount); without gains, to nothing."""
    mixer = make(eta=0.1, c=0.0, discount=0.9)
    alphas(mixer, [(1, 0)] * 300)
    log_q = mixer.state()["log_q"]
    assert log_q[0] - log_q[1] == pytest.approx(1.0)
    assert alphas(mixer, [(0, 0)] * 300)[-1] == pytest.approx(0.5)


def test_average_alpha_mixes_by_the_mean_so_far() -> None:
    plain = alphas(make(eta=0.5), [(1, 0), (3, 0), (0, 9)])
    averaged = alphas(make(eta=0.5, average_alpha=True), [(1, 0), (3, 0), (0, 9)])
    assert averaged == pytest.approx([np.mean(plain[: step + 1]) for step in range(4)])


def test_task_clip_clips_the_mean_of_a_task() -> None:
    """The update is shown unclipped sums; a task that is ahead of its specialist gains nothing, not less."""
    expected = alphas(make(eta=0.5), [(0, 1), (2, 0)])
    assert alphas(make(eta=0.5, task_clip=True), [(-5, 1), (2, -0.1)]) == expected


@pytest.mark.parametrize("name", METHODS)
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
    mixer = make(name, **options)
    assert (mixer.trains_on, mixer.learns_from) == (trains_on, learns_from)
