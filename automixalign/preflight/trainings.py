"""The trainings of an experiment: their optimiser steps, and which pairs they draw."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from automixalign.config.experiment import Experiment
from automixalign.config.training import Budget, specialist_name
from automixalign.method.mixer import GradientSample

_DRAWS = 4096
"""Pairs to draw of a mixer, to see the shares of its tasks."""


class PlannedTraining(NamedTuple):
    """A training that the run will do."""

    name: str
    steps: int | None
    """Optimiser steps; None if they depend on data that was not read."""
    shares: dict[str, float]
    """Task -> its share of the pairs of the first step; empty if that depends on data that was not read."""
    gradients: GradientSample | None = None
    """The measurements of the tasks' gradients that its mixer needs."""


def planned_trainings(experiment: Experiment, sizes: Mapping[str, int]) -> list[PlannedTraining]:
    """The specialists, the trainings of cross-fitting, and the generalists, in the order of the leaderboard.

    Args:
        experiment: the configuration.
        sizes: task -> its training pairs, of the tasks that were read.
    """
    specialist, tasks = experiment.budget.specialist, [task.name for task in experiment.tasks]
    trainings = []
    for task in tasks:
        size, name = sizes.get(task), specialist_name(task)
        trainings.append(PlannedTraining(name, _steps(experiment, specialist, size), {task: 1.0}))
        if experiment.specialist_losses.cross_fit:
            half = None if size is None else -(-size // 2)
            steps = _steps(experiment, specialist.halved(), half)
            trainings += [PlannedTraining(f"{name}, half {number}", steps, {task: 1.0}) for number in (1, 2)]
    known = [sizes[task] for task in tasks if task in sizes]
    is_complete = len(known) == len(tasks)
    steps = _steps(experiment, experiment.budget.generalist, sum(known) if is_complete else None)
    for method in experiment.methods:
        shares, gradients = {}, None
        if is_complete:
            mixer = method.mixer(dict(zip(tasks, known, strict=True)), experiment.seed)
            drawn = np.bincount(mixer.draw(0, _DRAWS), minlength=len(tasks)) / _DRAWS
            shares, gradients = dict(zip(tasks, drawn.tolist(), strict=True)), mixer.gradients
        trainings.append(PlannedTraining(method.name, steps, shares, gradients))
    return trainings


def _steps(experiment: Experiment, budget: Budget, pairs: int | None) -> int | None:
    if pairs is None:
        return budget.steps
    return budget.count_steps(pairs, experiment.training.batch_size)
