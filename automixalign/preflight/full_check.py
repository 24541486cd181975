"""Check a configuration, and the data and the base model that are on this machine."""

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from automixalign.config.data import LocationSpec, TaskSpec
from automixalign.config.experiment import Experiment
from automixalign.data.clean import Collector, Fate
from automixalign.data.read_task import open_task
from automixalign.data.store import TRAIN
from automixalign.data.task_pairs import read_candidates
from automixalign.models.inspect import Outline, is_at_hand, read_outline
from automixalign.models.prepare import inspect_base_model, transformers_silenced
from automixalign.models.trainable import check_trainable
from automixalign.preflight.data_view import prepared
from automixalign.preflight.estimate import Estimate, estimate
from automixalign.preflight.trainings import PlannedTraining, planned_trainings
from automixalign.preflight.validate import is_here, pinned
from automixalign.scoring.verifiers.registry import make_verifier
from automixalign.system.errors import ConfigError


class FullCheck(NamedTuple):
    """What a check of everything on this machine showed."""

    trainings: list[PlannedTraining]
    unread: list[str]
    """The sources on a network, as `task NAME: PATH` or `decontaminate: PATH`."""
    card: dict[str, Any] | None = None
    """Of the tasks on this machine; None without the tokenizer."""
    untokenized: dict[str, int] | None = None
    """Without the tokenizer: task -> its usable pairs, before their lengths are known."""
    estimate: Estimate | None = None


def check_in_full(experiment: Experiment, with_estimate: bool = False, workers: int = 1) -> FullCheck:
    """Check the base model and the data on this machine: all pairs, rendered and tokenised.

    The values of the model's weights are not checked.

    Args:
        experiment: the configuration.
        with_estimate: whether to time a few steps of training.
        workers: how many trainings a run does at a time on this machine.

    Raises:
        DataError: naming file and line, or the task.
        ModelError: naming the model.
        ConfigError: `max_length`, `training.lora` or `training.trainable` does not fit the base model; or an
            estimate needs what is not on this machine.
    """
    experiment = pinned(experiment)
    inspect_base_model(experiment.base_model, experiment.max_length)
    here = [task for task in experiment.tasks if all(map(is_here, task.sources))]
    unread = _unread(experiment)
    test_sets = list(filter(is_here, experiment.decontaminate))
    experiment = experiment.model_copy(update={"decontaminate": test_sets})
    at_hand = is_at_hand(experiment.base_model)
    if with_estimate:
        _check_all_is_here(experiment, at_hand, unread)
    if not at_hand:
        untokenized = count_usable(experiment, here)
        return FullCheck(planned_trainings(experiment, {}), unread, untokenized=untokenized)
    with tempfile.TemporaryDirectory() as scratch:
        outline = read_outline(experiment.base_model, Path(scratch))
        _check_settings(experiment, outline)
        if not here:
            return FullCheck(planned_trainings(experiment, {}), unread)
        with prepared(experiment, here, outline) as (card, data):
            sizes = {task["name"]: task["pairs"][TRAIN] for task in card["tasks"]}
            trainings = planned_trainings(experiment, sizes)
            cost = estimate(experiment, outline, data, trainings, workers) if with_estimate else None
            return FullCheck(trainings, unread, card, estimate=cost)


def _unread(experiment: Experiment) -> list[str]:
    sources: list[tuple[str, LocationSpec]] = [
        (f"task {task.name}", source) for task in experiment.tasks for source in task.sources
    ]
    sources += [("decontaminate", test_set) for test_set in experiment.decontaminate]
    return [f"{owner}: {source.path}" for owner, source in sources if not is_here(source)]


def _check_all_is_here(experiment: Experiment, at_hand: bool, unread: list[str]) -> None:
    missing = [] if at_hand else [f"base_model.source: {experiment.base_model.source}"]
    if missing := [*missing, *unread]:
        raise ConfigError(
            f"--estimate needs the base model and all data on this machine, and {missing[0]} is on a network; "
            "download it, and name its folder"
        )


def count_usable(experiment: Experiment, tasks: list[TaskSpec]) -> dict[str, int]:
    """Task -> its usable pairs, before their lengths are known."""
    counts = {}
    for task in tasks:
        with open_task(task, experiment.seed, make_verifier) as reader:
            candidates = read_candidates(reader, experiment.seed, Collector(experiment.seed))
        counts[task.name] = int((candidates.fates == Fate.USED).sum())
    return counts


def _check_settings(experiment: Experiment, outline: Outline) -> None:
    """Check the settings that depend on the base model's shape."""
    from automixalign.models.load import check_positions
    from automixalign.scoring.logps.layout import layout_of

    check_positions(outline.config, experiment.max_length)
    layout_of(outline.config, experiment.loading, on_cuda=True)
    if experiment.training.lora is not None or experiment.training.trainable is not None:
        with transformers_silenced():
            check_trainable(outline.empty_model(), experiment.training)
