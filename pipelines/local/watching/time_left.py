"""How long a run still takes, from the times of its stages and steps so far.

Nothing is guessed before it was measured: without the time of a step, a run has no time left to show.
"""

import heapq
from collections.abc import Iterator
from statistics import fmean
from typing import NamedTuple, TypeAlias

from automixalign.config.experiment import Experiment
from automixalign.config.training import specialist_name
from pipelines.local.watching.stages import Stage, StageKey, Stages

Chain: TypeAlias = list[StageKey]
"""Stages of which each waits for the one before."""
_TRAININGS = ("train_specialist", "train_generalist")
_QUICK = ("validate_config", "gather_specialists", "gather_merges", "compare")
"""These run once and take seconds, which count as none."""


class TimeLeft(NamedTuple):
    """What a run still takes."""

    seconds: float
    is_complete: bool
    """Whether stages of every kind that is left were measured; otherwise it takes longer."""


def planned_stages(experiment: Experiment) -> list[list[Chain]]:
    """The stages of a DAG in groups, which run one after another; the chains of a loop run side by side."""

    def alone(*stages: str) -> list[list[Chain]]:
        return [[[(stage, "")]] for stage in stages]

    def solve(model: str) -> Chain:
        return [("benchmark", model)] if experiment.benchmarks else []

    tasks = [task.name for task in experiment.tasks]
    specialists = [
        [("train_specialist", task), ("evaluate", specialist_name(task)), ("specialist_losses", task)]
        for task in tasks
    ]
    generalists, warm_generalists = (
        [
            [("train_generalist", method.name), ("evaluate", method.name), *solve(method.name)]
            for method in experiment.methods
            if (method.init is not None) == warm
        ]
        for warm in (False, True)
    )
    merges = [
        [("merge_specialists", merge.name), ("evaluate", merge.name), *solve(merge.name)]
        for merge in experiment.merges
    ]
    return [
        *alone("validate_config", "prepare_base_model"),
        [solve("reference")],
        *alone("prepare_data", "reference_logps"),
        specialists,
        *alone("gather_specialists"),
        generalists,
        [[("evaluate", "reference")]],
        merges,
        *(alone("gather_merges") if warm_generalists else []),
        warm_generalists,
        *alone("compare"),
        *(alone("register") if experiment.registry else []),
        *(alone("publish") if experiment.output else []),
    ]


def list_stages(experiment: Experiment) -> list[StageKey]:
    """The stages of an experiment's DAG, in order."""
    return [key for group in planned_stages(experiment) for chain in group for key in chain]


def time_left(experiment: Experiment, workers: int, stages: Stages, now: float) -> TimeLeft | None:
    """How long a run still takes.

    A step of a training that has not begun takes as long as those that were measured, and any other stage as
    long as the mean stage of its kind. A stage whose result will come from the cache counts as if it ran.

    Args:
        experiment: the configuration.
        workers: how many chains of a loop run at a time.
        stages: what the events told so far.
        now: the time.

    Returns:
        None if a training is left whose steps, or the time of a step, are unknown; or if nothing that is left
        was measured.
    """
    measured, unmeasured, total = 0, 0, 0.0
    for group in planned_stages(experiment):
        chains = []
        for chain in group:
            left = [key for key in chain if not (key in stages and stages[key].is_done)]
            seconds = [_Measured(experiment, stages, now).left(key) for key in left]
            if any(each is None and key[0] in _TRAININGS for key, each in zip(left, seconds, strict=True)):
                return None
            slow = [each for key, each in zip(left, seconds, strict=True) if key[0] not in _QUICK]
            measured += sum(each is not None for each in slow)
            unmeasured += slow.count(None)
            chains.append((not any(key in stages for key in chain), sum(each or 0.0 for each in seconds)))
        total += _side_by_side([seconds for _, seconds in sorted(chains, key=lambda chain: chain[0])], workers)
    return TimeLeft(total, unmeasured == 0) if measured else None


def _side_by_side(chains: list[float], workers: int) -> float:
    """Seconds until all chains have ended, if each worker takes the next one when it is free."""
    ends = [0.0] * workers
    for seconds in chains:
        heapq.heapreplace(ends, ends[0] + seconds)
    return max(ends)


class _Measured:
    """What was measured of the stages of a run, for those that are left."""

    def __init__(self, experiment: Experiment, stages: Stages, now: float) -> None:
        self.experiment, self.stages, self.now = experiment, stages, now

    def left(self, key: StageKey) -> float | None:
        """Seconds that a stage still takes; None if nothing tells."""
        running = self.stages.get(key)
        if running is not None and running.state != "running":
            running = None  # it failed, and runs again
        if key[0] in _TRAININGS:
            if running is not None and running.seconds_each is not None:
                return running.time_left(self.now)
            steps, each = self._steps(key[0]), self._step_seconds(key[0])
            return None if steps is None or each is None else steps * each
        finished = [stage.seconds for stage in self._of(key[0]) if stage.seconds is not None and stage.is_done]
        if finished:
            return max(fmean(finished) - (self.now - running.started if running else 0.0), 0.0)
        return running.time_left(self.now) if running else None

    def _of(self, kind: str) -> Iterator[Stage]:
        return (stage for (stage_kind, _), stage in self.stages.items() if stage_kind == kind)

    def _steps(self, kind: str) -> float | None:
        """The optimiser steps of a training that has not begun; for epochs, from trainings that have."""
        budget = self.experiment.budget
        phase = budget.specialist if kind == "train_specialist" else budget.generalist
        if phase.steps is not None:
            return phase.steps
        if known := [stage.total for stage in self._of(kind) if stage.total]:
            return fmean(known)
        specialists = [stage.total for stage in self._of("train_specialist") if stage.total]
        if kind == "train_specialist" or not specialists or not budget.specialist.epochs or not phase.epochs:
            return None
        return fmean(specialists) * len(self.experiment.tasks) * phase.epochs / budget.specialist.epochs

    def _step_seconds(self, kind: str) -> float | None:
        """Of a step, over the whole of finished trainings, or else over the steps of those that run."""
        for trainings in ([kind], _TRAININGS):
            stages = [stage for each in trainings for stage in self._of(each) if stage.total]
            if done := [(stage.seconds, stage.total) for stage in stages if stage.seconds and stage.is_done]:
                return sum(seconds for seconds, _ in done) / sum(steps for _, steps in done)
            if rates := [stage.seconds_each for stage in stages if stage.seconds_each is not None]:
                return fmean(rates)
        return None
