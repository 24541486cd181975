"""The estimate of a run's cost: what is calculated follows from the data and the model."""

from pathlib import Path
from typing import Any

import pytest

from automixalign.config.experiment import parse_experiment
from automixalign.config.settings import Loading
from automixalign.data.store import TRAIN, read_split
from automixalign.method.mixer import GradientSample
from automixalign.models.inspect import read_outline
from automixalign.models.load import load_full_model
from automixalign.preflight.estimate import Estimate, estimate
from automixalign.preflight.memory import linear_parameters, weights_bytes
from automixalign.preflight.trainings import PlannedTraining
from benchmarks import tiny

MEASURED = GradientSample(every=4, pairs=8)
TRAININGS = [
    PlannedTraining("one", 10, {"format": 1.0}),
    PlannedTraining("both", 20, {"format": 0.5, "refusal": 0.5}),
    PlannedTraining("measured", 20, {"format": 0.5, "refusal": 0.5}, MEASURED),
]


def estimated(base_model: Path, data: Path, scratch: Path, **training: Any) -> Estimate:
    tasks = [{"name": name, "source": f"synthetic:{name}", "limit": 30} for name in tiny.TASKS]
    settings = {"batch_size": 8, "micro_batch_size": 2, "learning_rate": 0.001, **training}
    changes = {"tasks": tasks, "base_model": str(base_model), "training": settings}
    experiment = parse_experiment({**tiny.experiment(), **changes}, "test")
    return estimate(experiment, read_outline(experiment.base_model, scratch), data, TRAININGS, 2)


@pytest.fixture(scope="module")
def plain(base_model: Path, two_tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Estimate:
    return estimated(base_model, two_tasks, tmp_path_factory.mktemp("scratch"))


def mean_tokens(data: Path, task: str) -> float:
    rows = read_split(data, task, TRAIN).to_pylist()
    sizes = [2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows]
    return sum(sizes) / len(sizes)


def test_tokens(plain: Estimate, two_tasks: Path) -> None:
    of_format, of_refusal = (mean_tokens(two_tasks, task) for task in tiny.TASKS)
    one, both, _ = plain.trainings
    assert one.tokens_per_step == pytest.approx(8 * of_format)
    assert both.tokens_per_step == pytest.approx(4 * of_format + 4 * of_refusal)
    assert both.tokens == pytest.approx(20 * both.tokens_per_step)


def test_time_follows_from_the_measured_step(plain: Estimate) -> None:
    assert plain.micro_batch == 2
    assert plain.step_seconds > 0
    one, both, measured = plain.trainings
    # Five measurements of 8 pairs of both tasks, beside 20 steps of 8 pairs.
    assert measured.tokens == both.tokens, "those that train"
    assert measured.seconds == pytest.approx(both.seconds * (20 + 5 * 2) / 20)
    assert both.seconds / one.seconds == pytest.approx(both.tokens / one.tokens)
    # A step of 8 pairs is about 4 of the measured ones.
    assert one.seconds == pytest.approx(10 * 4 * plain.step_seconds, rel=0.2)


def test_validations_take_a_third_of_a_step(base_model: Path, two_tasks: Path, tmp_path: Path) -> None:
    result = estimated(base_model, two_tasks, tmp_path, validate_every=4, validation_pairs=2)
    one = result.trainings[0]
    assert one.tokens == 10 * one.tokens_per_step, "those that train"
    # Ten steps of 8 pairs, and three validations of 2 pairs.
    assert one.seconds == pytest.approx((10 * 4 + 3 / 3) * result.step_seconds, rel=0.2)


def test_bytes_of_full_fine_tuning(plain: Estimate, base_model: Path) -> None:
    parameters = load_full_model(base_model).num_parameters()
    assert (plain.parameters, plain.trained_parameters) == (parameters, parameters)
    assert (plain.weights_bytes, plain.gradients_bytes) == (4 * parameters, 4 * parameters)
    assert plain.optimiser_bytes == 8 * parameters
    assert plain.peak_bytes > plain.weights_bytes


def test_lora_trains_few_parameters(base_model: Path, two_tasks: Path, tmp_path: Path) -> None:
    lora = {"rank": 1, "target_modules": ["q_proj"]}
    result = estimated(base_model, two_tasks, tmp_path, lora=lora)
    assert result.trained_parameters == 2 * 16, "rank 1 of a matrix of 16 x 16"
    assert result.gradients_bytes == 4 * 32
    assert result.weights_bytes == 4 * (result.parameters + 32), "the frozen weights are fp32 without bf16"


@pytest.mark.parametrize(
    ("loading", "bf16", "expected"),
    [
        ({}, True, 4 * 1000 + 4 * 10),
        ({"dtype": "source"}, False, 4 * 1000 + 4 * 10),
        ({"dtype": "source"}, True, 2 * 1000 + 4 * 10),
        ({"dtype": "source", "quantize": "8bit"}, True, 800 + 2 * 200 + 4 * 10),
        ({"dtype": "source", "quantize": "4bit"}, True, round(800 * 0.515869) + 2 * 200 + 4 * 10),
    ],
)
def test_bytes_of_frozen_weights(loading: dict[str, Any], bf16: bool, expected: int) -> None:
    assert weights_bytes(1000, 800, 10, Loading.model_validate(loading), bf16) == expected


def test_a_quantised_model_takes_the_bytes_that_are_estimated(base_model: Path) -> None:
    model = load_full_model(base_model)
    linear = linear_parameters(model)
    loading = Loading(quantize="8bit")
    quantized = load_full_model(base_model, loading)
    stored = sum(weight.numel() * weight.element_size() for weight in quantized.parameters())
    assert stored == weights_bytes(model.num_parameters(), linear, 0, loading, bf16=False)


def test_processes_share_the_steps(plain: Estimate, base_model: Path, two_tasks: Path, tmp_path: Path) -> None:
    result = estimated(base_model, two_tasks, tmp_path, processes=2)
    assert result.processes == 2
    one = result.trainings[0]
    assert one.tokens == plain.trainings[0].tokens
    assert one.seconds == pytest.approx(10 * 4 * result.step_seconds / 2, rel=0.2)


def test_all_trainings_take_as_long_as_the_workers_need(plain: Estimate) -> None:
    seconds = [each.seconds for each in plain.trainings]
    assert plain.seconds == max(sum(seconds) / 2, *seconds)
