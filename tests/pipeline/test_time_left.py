"""How long a run still takes, from events whose times are simple."""

from typing import Any

import pytest

from automixalign.config.experiment import Experiment, parse_experiment
from pipelines.local.watching.stages import Stages
from pipelines.local.watching.time_left import TimeLeft, list_stages, time_left

WORKERS = 2
NOW = 1000.0


@pytest.fixture
def experiment(experiment_data: dict[str, Any]) -> Experiment:
    """Two tasks, three methods and a merge; 100 steps of a specialist, 200 of a generalist."""
    budget = {"specialist": {"steps": 100}, "generalist": {"steps": 200}}
    return parse_experiment(experiment_data | {"budget": budget}, "test")


def finished(stage: str, name: str = "", seconds: float = 1.0, steps: int = 0) -> list[dict[str, Any]]:
    key = {"stage": stage, "name": name}
    progress = [{**key, "event": "progress", "time": NOW, "done": steps, "total": steps}] if steps else []
    return [
        {**key, "event": "started", "time": NOW - seconds},
        *progress,
        {**key, "event": "finished", "time": NOW},
    ]


def running(stage: str, name: str, each: float, done: int, total: int) -> list[dict[str, Any]]:
    """A stage that has done so much, at `each` seconds a step."""
    key = {"stage": stage, "name": name}
    return [
        {**key, "event": "started", "time": NOW - 500},
        {**key, "event": "progress", "time": NOW - each * done, "done": 0, "total": total},
        {**key, "event": "progress", "time": NOW, "done": done, "total": total},
    ]


PREPARED = [
    event
    for stage in ("validate_config", "prepare_base_model", "prepare_data", "reference_logps")
    for event in finished(stage)
]


def left(experiment: Experiment, events: list[dict[str, Any]]) -> TimeLeft | None:
    return time_left(experiment, WORKERS, Stages(events), NOW)


def test_nothing_is_said_before_a_step_was_measured(experiment: Experiment) -> None:
    assert left(experiment, []) is None
    assert left(experiment, PREPARED) is None
    begun = {"stage": "train_specialist", "name": "arithmetic", "event": "started", "time": NOW}
    assert left(experiment, [*PREPARED, begun]) is None


def test_the_first_steps_tell_all_trainings(experiment: Experiment) -> None:
    """Two specialists side by side have 90 steps left each; three generalists of 200 steps take two rounds."""
    events = [*PREPARED]
    for task in ("arithmetic", "format"):
        events += running("train_specialist", task, 0.5, 10, 100)
    expected = 90 * 0.5 + 2 * 200 * 0.5
    assert left(experiment, events) == TimeLeft(pytest.approx(expected), is_complete=False)


def specialists(**seconds: float) -> list[dict[str, Any]]:
    events = [*PREPARED]
    for task in ("arithmetic", "format"):
        events += finished("train_specialist", task, seconds=50, steps=100)
        events += finished("evaluate", f"specialist-{task}", seconds=4)
        events += finished("specialist_losses", task, seconds=2)
    return [*events, *finished("gather_specialists")]


def test_measured_stages_tell_the_others_of_their_kind(experiment: Experiment) -> None:
    """A generalist that runs tells the speed of the others; an evaluation takes as long as others."""
    events = [*specialists(), *running("train_generalist", "standard", 1.0, 50, 200)]
    # One worker: 150 + 4 of the first generalist. The other: 200 + 4. The third: after the first.
    expected = (150 + 4) + (200 + 4) + 4 + 4
    assert left(experiment, events) == TimeLeft(pytest.approx(expected), is_complete=False)


def test_it_is_complete_when_every_kind_that_is_left_was_measured(experiment: Experiment) -> None:
    methods = ("standard", "ama-r", "ama-s")
    events = specialists()
    for method in methods:
        events += [*finished("train_generalist", method, 100, 200), *finished("evaluate", method, 4)]
    events += [*finished("evaluate", "reference", 4), *finished("merge_specialists", "linear", 3)]
    assert left(experiment, events) == TimeLeft(pytest.approx(4), is_complete=True)
    events += finished("evaluate", "linear", 4)
    assert left(experiment, events) is None, "nothing was measured of what is left"


def test_a_stage_from_the_cache_takes_no_time(experiment: Experiment) -> None:
    cached = [
        {"stage": stage, "name": name, "event": "cached", "time": NOW}
        for stage, name in list_stages(experiment)
        if stage != "train_generalist" and name not in ("standard", "ama-r", "ama-s", "linear")
    ]
    assert left(experiment, cached) is None
    events = [*cached, *running("train_generalist", "standard", 1.0, 50, 200)]
    events += finished("train_generalist", "ama-r", seconds=200, steps=200)
    assert left(experiment, events) == TimeLeft(pytest.approx(200), is_complete=False), "side by side"


def test_epochs_of_generalists_follow_from_the_steps_of_specialists(experiment_data: dict[str, Any]) -> None:
    budget = {"specialist": {"epochs": 1}, "generalist": {"epochs": 2}}
    experiment = parse_experiment(experiment_data | {"budget": budget}, "test")
    events = [*PREPARED, *running("train_specialist", "arithmetic", 1.0, 10, 30)]
    assert left(experiment, events) == TimeLeft(pytest.approx(30 + 2 * (2 * 2 * 30)), is_complete=False)
