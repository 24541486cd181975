"""The registry of metrics.

To add a metric to this project, write a function in `built_in.py` and decorate it with `metric`. Another
package does the same in a module of its own, and declares it through an entry point:

    [project.entry-points."automixalign.metrics"]
    large_losses = "my_package.metrics:large_losses"

The leaderboard, its intervals, the terminal, MLflow and the report then show it.
"""

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from automixalign.scoring.caches import Floats
from automixalign.system.errors import ConfigError
from automixalign.system.plugins import Plugins

Better = Literal["lower", "higher"]
Measured = Literal["pairs", "answers"]
Values: TypeAlias = npt.NDArray[Any]
"""A metric's values, one for each pair or prompt: numbers or truth values."""
Answer: TypeAlias = Mapping[str, Any]
"""A line of `generations.jsonl`, which `automixalign.scoring.evaluate` writes."""

_FORMAT = re.compile(r"\.\d[f%]")


class NotMeasuredError(Exception):
    """A metric raises it if it has no meaning for the scores or answers it gets; it is then left out."""


@dataclass(frozen=True)
class PairScores:
    """What a policy gives to the test pairs of a task; every array has the shape (pairs,)."""

    losses: Floats
    """L(theta, z), in nats."""
    margins: Floats
    """Reward of the chosen answer minus that of the rejected one; a reward is beta times the log-ratio."""
    chosen_log_ratios: Floats
    """log pi_theta - log pi_ref of the chosen answer, in nats."""
    of_specialist: Floats | None = None

    def __post_init__(self) -> None:
        for values in (self.losses, self.margins, self.chosen_log_ratios, self.of_specialist):
            if values is not None:
                values.setflags(write=False)  # a metric that changes them would change the next one

    @property
    def specialist_losses(self) -> Floats:
        """L(theta_i, z) of the task's specialist, in nats.

        Raises:
            NotMeasuredError: they are not known yet, while a single model is evaluated.
        """
        if self.of_specialist is None:
            raise NotMeasuredError
        return self.of_specialist


class Metric:
    """A metric: a function, and how its values are ranked and shown.

    Args:
        function: gives the values.
        of: what it measures: the pairs of a task, or the generated answers to each prompt.
        better: the better direction; None for a metric that ranks no models and has no worst task.
        title: names it in tables.
        format: shows a value: digits after the point, as a number (`.3f`) or in percent (`.1%`).
        headline: whether the terminal and MLflow's run of the pipeline show it.
        share: whether values of answers lie from 0 to 1. All 0, or all 1, have a binomial interval.

    Raises:
        ValueError: there is no such format, direction or kind of metric.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        of: Measured,
        better: Better | None,
        title: str,
        format: str,
        headline: bool,
        share: bool,
    ) -> None:
        if not _FORMAT.fullmatch(format):
            raise ValueError(f"the format {format!r} is neither like .3f nor like .1%")
        choices = (("better", better, (*get_args(Better), None)), ("of", of, get_args(Measured)))
        for key, value, known in choices:
            if value not in known:
                raise ValueError(f"{key}={value!r}: it must be one of {', '.join(map(repr, known))}")
        self.function, self.of, self.better = function, of, better
        self.title, self.format, self.headline, self.share = title, format, headline, share
        self.module = function.__module__
        functools.update_wrapper(self, function)

    def __call__(self, measured: Any) -> Any:
        """The metric's values."""
        return self.function(measured)

    def show(self, value: float) -> str:
        """A value as text."""
        return format(value, self.format)

    def worst(self, values: Mapping[str, float]) -> str:
        """The task with the worst value."""
        return (max if self.better == "lower" else min)(values, key=values.__getitem__)

    def facts(self) -> dict[str, Any]:
        """What a report needs to show and rank values."""
        facts = {key: getattr(self, key) for key in ("better", "title", "format", "headline")}
        description = (inspect.getdoc(self.function) or "").split("\n\n")[0]
        return facts | {"description": " ".join(description.split())}


_metrics: Plugins[Metric] = Plugins("metric", __package__)
registered_metrics = cache(_metrics.load)
"""Every metric by name, in the order of the leaderboard's columns."""


def metric(
    name: str,
    *,
    better: Better | None,
    of: Measured = "pairs",
    title: str = "",
    format: str = ".3f",
    headline: bool = True,
    share: bool = False,
) -> Callable[[Callable[[Any], Any]], Metric]:
    """Register a metric, as a decorator of a function.

    A metric of `pairs` is a function of `PairScores`. It returns one value for each pair, of shape (pairs,).
    A metric of `answers` is a function of the answers to one prompt, a sequence of `Answer`. It returns one
    value, such as the share that passes. A task's value is the mean. For the arguments, see `Metric`; the title
    is by default the name.
    """
    if not name.isidentifier():
        raise ValueError(f"the metric's name {name!r} is no identifier")
    title = title or name.replace("_", " ")
    return lambda function: _metrics.register(name)(
        Metric(function, of, better, title, format, headline, share)
    )


def ranked_metrics() -> dict[str, Metric]:
    """The metrics with a better direction, by name."""
    return {name: metric for name, metric in registered_metrics().items() if metric.better}


def pair_values(pairs: PairScores) -> dict[str, Values]:
    """Metric of pairs -> its values, shape (pairs,).

    Raises:
        ConfigError: a metric fails, or does not return a finite number for each pair.
    """
    return _values("pairs", lambda metric: metric(pairs), len(pairs.losses))


def answer_values(answers: Iterable[Answer]) -> dict[str, Values]:
    """Metric of answers -> its values, shape (prompts,), in the order of each prompt's first answer.

    Shares that are all 0 or 1 become truth values. Without answers there are no metrics.

    Raises:
        ConfigError: a metric fails, or does not return a finite number for each prompt.
    """
    prompts: dict[str, list[Answer]] = {}
    for answer in answers:
        prompts.setdefault(answer["pair_id"], []).append(answer)
    if not prompts:
        return {}
    values = _values("answers", lambda metric: list(map(metric, prompts.values())), len(prompts))
    shares = {name for name, metric in registered_metrics().items() if metric.share}
    return {
        name: of.astype(bool) if name in shares and np.isin(of, (0, 1)).all() else of
        for name, of in values.items()
    }


def _values(of: Measured, measure: Callable[[Metric], Any], count: int) -> dict[str, Values]:
    result = {}
    for name, metric in registered_metrics().items():
        if metric.of != of:
            continue
        try:
            values = np.asarray(measure(metric))
        except NotMeasuredError:
            continue
        except Exception as error:  # a package's own code runs here
            raise ConfigError(f"the metric {name} fails: {type(error).__name__}: {error}; repair it") from error
        if values.shape != (count,):
            raise ConfigError(
                f"the metric {name} returns values of the shape {values.shape} for {count} {of}; it must "
                "return one for each"
            )
        wrong = values[~np.isfinite(values)] if values.dtype.kind in "biuf" else values
        if len(wrong):
            raise ConfigError(f"the metric {name} returns {wrong[0]!r:.80}; it must return finite numbers")
        result[name] = values
    return result


def means(values: Mapping[str, Values]) -> dict[str, float]:
    """Metric -> mean of its values."""
    return {name: float(of.mean()) for name, of in values.items()}


def over_tasks(tasks: Mapping[str, Mapping[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """The worst task's value of each ranked metric, and its mean over the tasks that have it."""
    worst, average = {}, {}
    for name, metric in ranked_metrics().items():
        values = {task: measured[name] for task, measured in tasks.items() if name in measured}
        if values:
            worst[name] = values[metric.worst(values)]
            average[name] = float(np.mean([*values.values()]))
    return worst, average
