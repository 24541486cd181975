"""The trainings of an experiment: their steps as the run counts them, and the tasks that they draw."""

from typing import Any

import pytest

from automixalign.config.experiment import Experiment, parse_experiment
from automixalign.preflight.trainings import PlannedTraining, planned_trainings

SIZES = {"arithmetic": 90, "format": 10}


def planned(data: dict[str, Any], sizes: dict[str, int] = SIZES, **changes: Any) -> dict[str, PlannedTraining]:
    experiment: Experiment = parse_experiment({**data, **changes}, "test")
    return {training.name: training for training in planned_trainings(experiment, sizes)}


def test_epochs_are_counted_in_the_pairs_of_the_training(experiment_data: dict[str, Any]) -> None:
    budget = {"specialist": {"epochs": 1}, "generalist": {"epochs": 2}}
    steps = {name: training.steps for name, training in planned(experiment_data, budget=budget).items()}
    assert steps == {
        "specialist-arithmetic": 23,
        "specialist-format": 3,
        "standard": 50,
        "ama-r": 50,
        "ama-s": 50,
    }


def test_cross_fitting_trains_twice_on_half(experiment_data: dict[str, Any]) -> None:
    budget = {"specialist": {"steps": 5}, "generalist": {"steps": 1}}
    changes = {"specialist_losses": {"cross_fit": True}, "budget": budget}
    trainings = planned(experiment_data, **changes)
    names = ["specialist-format", "specialist-format, half 1", "specialist-format, half 2"]
    assert [trainings[name].steps for name in names] == [5, 3, 3]


def test_steps_that_depend_on_unread_data_are_unknown(experiment_data: dict[str, Any]) -> None:
    budget = {"specialist": {"epochs": 1}, "generalist": {"epochs": 2}}
    trainings = planned(experiment_data, {"format": 10}, budget=budget)
    assert trainings["specialist-format"].steps == 3
    assert trainings["specialist-arithmetic"].steps is None
    assert (trainings["standard"].steps, trainings["standard"].shares) == (None, {})


def test_the_shares_of_the_tasks_are_those_that_a_method_draws(experiment_data: dict[str, Any]) -> None:
    trainings = planned(experiment_data, methods=["standard", "uniform"])
    assert trainings["specialist-format"].shares == {"format": 1.0}
    assert trainings["standard"].shares == pytest.approx({"arithmetic": 0.9, "format": 0.1}, abs=0.02)
    assert trainings["uniform"].shares == {"arithmetic": 0.5, "format": 0.5}
