"""The metrics of all models on one task, and how far they are known."""

import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from automixalign.config.training import specialist_name
from automixalign.scoring import caches
from automixalign.scoring.caches import GENERATIONS, SUMMARY, Floats
from automixalign.scoring.intervals import (
    Estimate,
    Interval,
    bootstrap_means,
    mean_interval,
    percentile_interval,
)
from automixalign.scoring.metrics.registry import (
    Answer,
    Measured,
    PairScores,
    Values,
    answer_values,
    means,
    pair_values,
    registered_metrics,
)
from automixalign.storage import files
from automixalign.system.errors import CacheError

_COLUMNS = (caches.LOSS, caches.MARGIN, caches.LOG_RATIO, caches.PROMPT)


@dataclass(frozen=True)
class TaskScores:
    """What the models of a run reach on one task; the intervals take models and data as fixed.

    Args:
        task: its name.
        values: model -> metric -> its values, in the same order for every model.
        prompts: the prompt of each value, of the metrics of pairs and of those of answers.
    """

    task: str
    values: dict[str, dict[str, Values]] = field(default_factory=dict)
    prompts: dict[Measured, list[str] | Floats] = field(default_factory=dict)

    def means(self, model: str) -> dict[str, float]:
        """Metric -> its value."""
        return means(self.values[model])

    @cached_property
    def resampled(self) -> Mapping[tuple[str, str], Floats]:
        """Model and metric -> the metric in each resample of the prompts; empty for fewer than two prompts."""
        metrics = registered_metrics()
        result: dict[tuple[str, str], Floats] = {}
        for of, prompts in self.prompts.items():
            keys = [
                (model, name) for model, each in self.values.items() for name in each if metrics[name].of == of
            ]
            if len(np.unique(np.asarray(prompts))) > 1:
                columns = np.stack([self.values[model][name] for model, name in keys], axis=1)
                drawn = bootstrap_means(columns, prompts, seed=zlib.crc32(f"{self.task}:{of}".encode()))
                result |= dict(zip(keys, drawn.T, strict=True))
        return result

    def intervals(self, model: str) -> dict[str, Interval]:
        """Metric -> the interval of its value."""
        metrics = registered_metrics()
        return {
            name: mean_interval(values, self.prompts[metrics[name].of], self.resampled[model, name])
            for name, values in self.values[model].items()
            if (model, name) in self.resampled
        }

    def differences(self, model: str, baseline: str) -> dict[str, Estimate]:
        """Metric -> its value less that of another model, prompt by prompt."""
        mine, other = self.means(model), self.means(baseline)
        return {
            name: Estimate(
                mine[name] - other[name],
                *percentile_interval(self.resampled[model, name] - self.resampled[baseline, name]),
            )
            for name in mine
            if (model, name) in self.resampled and (baseline, name) in self.resampled
        }


def read_task_scores(folders: Mapping[str, Path], models: Iterable[str], task: str, title: str) -> TaskScores:
    """Read the scores and answers of all models on one task.

    Args:
        folders: model -> its evaluation, of all models and the task's specialist.
        models: the models to read.
        task: the task.
        title: names task and split in messages.

    Raises:
        CacheError: the specialist was not evaluated, models have different pairs or prompts, or a summary does
            not agree with the scores.
    """
    if specialist_name(task) not in folders:
        raise CacheError(f"the specialist of task {task} was not evaluated")
    specialist = caches.read_scores(folders[specialist_name(task)], task, caches.LOSS)
    result = TaskScores(task)
    for model in models:
        folder = folders[model]
        pairs = caches.read_scores(folder, task, *_COLUMNS).sort_by("pair_id")
        others = caches.join(specialist, pairs.column("pair_id").to_pylist(), f"specialist of {title}")
        if len(specialist) != len(others):
            raise CacheError(
                f"{folder}: has {len(others)} pairs of task {task}, but its specialist {len(specialist)}; "
                "evaluate again"
            )
        scores = PairScores(
            losses=caches.column(pairs, caches.LOSS),
            margins=caches.column(pairs, caches.MARGIN),
            chosen_log_ratios=caches.column(pairs, caches.LOG_RATIO),
            of_specialist=caches.column(others, caches.LOSS),
        )
        result.values[model] = pair_values(scores)
        result.prompts["pairs"] = caches.column(pairs, caches.PROMPT)
        answers = _read_answers(folder, task)
        if answers:
            result.values[model] |= answer_values(answers)
            prompts = list(dict.fromkeys(answer["pair_id"] for answer in answers))
            if result.prompts.setdefault("answers", prompts) != prompts:
                raise CacheError(
                    f"{folder}: {model} answered other prompts of task {task} than the models before it; "
                    "evaluate again"
                )
    return result


def _read_answers(folder: Path, task: str) -> list[Answer]:
    """The answers to a task's prompts, in an order that is the same for every model."""
    path = folder / GENERATIONS
    rows = files.read_jsonl(path) if path.exists() else []
    return sorted((row for row in rows if row["task"] == task), key=lambda row: str(row["pair_id"]))


def check_summary(
    folder: Path, task: str, measured: Mapping[str, float], computed: Mapping[str, float]
) -> None:
    """Check that a summary is finite, and agrees with the scores beside it.

    Raises:
        CacheError: it does not.
    """
    for metric, value in {**computed, **measured}.items():
        if not math.isfinite(value):
            raise CacheError(f"{folder / SUMMARY}: the {metric} of task {task} is {value}; evaluate it again")
        if not math.isclose(value, computed.get(metric, value), rel_tol=1e-6, abs_tol=1e-9):
            raise CacheError(
                f"{folder / SUMMARY}: the {metric} of task {task} is {value:g}, but its scores have "
                f"{computed[metric]:g}; evaluate it again"
            )
