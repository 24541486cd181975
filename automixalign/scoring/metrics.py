"""The metrics of an evaluation.

To add a metric of test pairs, write a function of `PairScores`, list it in `PAIR_METRICS`, and rank it in
`BETTER`. The leaderboard, the report and MLflow then show it.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from automixalign.scoring.caches import Floats

TaskMetrics = Mapping[str, float]
"""Metric -> value on one task."""

BETTER: dict[str, Literal["lower", "higher"]] = {
    "excess": "lower",
    "gap": "lower",
    "loss": "lower",
    "accuracy": "higher",
    "margin": "higher",
    "pass_rate": "higher",
}
"""Ranked metric -> the better direction, in the order of the leaderboard's columns."""


class PairScores(NamedTuple):
    """What a policy gives to the test pairs of a task; every array has the shape (pairs,)."""

    losses: Floats
    """L(theta, z), in nats."""
    margins: Floats
    """Reward of the chosen answer minus that of the rejected one; a reward is beta times the log-ratio."""
    chosen_log_ratios: Floats
    """log pi_theta - log pi_ref of the chosen answer, in nats."""


PAIR_METRICS: dict[str, Callable[[PairScores], Any]] = {
    "loss": lambda pairs: pairs.losses.mean(),
    "accuracy": lambda pairs: (pairs.margins > 0).mean(),
    "margin": lambda pairs: pairs.margins.mean(),
    "chosen_drift": lambda pairs: pairs.chosen_log_ratios.mean(),
}


def pair_metrics(pairs: PairScores) -> dict[str, float]:
    """Compute every metric of `PAIR_METRICS`."""
    return {name: float(metric(pairs)) for name, metric in PAIR_METRICS.items()}


def pass_rate(passes: Iterable[bool]) -> float:
    """Share of the generated answers that the verifier passes."""
    return float(np.mean(list(passes)))


def excess(losses: Floats, specialist_losses: Floats) -> float:
    """Mean over pairs of max(L(theta, z) - L(theta_i, z), 0): the objective of AMA (arXiv 2506.00569)."""
    return float(np.maximum(losses - specialist_losses, 0).mean())


def gap(losses: Floats, specialist_losses: Floats) -> float:
    """Mean over pairs of L(theta, z) - L(theta_i, z). Below 0, the policy is better than the specialist."""
    return float((losses - specialist_losses).mean())


def difference_interval(
    values: Floats, clusters: Sequence[int], others: Floats, other_clusters: Sequence[int]
) -> tuple[float, float] | None:
    """The 95 % interval of mean(values) - mean(others), two independent samples, by Student's t.

    Args:
        values: of the first sample, shape (pairs,).
        clusters: the cluster of each value, such as the number of its prompt; values of a cluster are related.
        others: of the second sample.
        other_clusters: the clusters of `others`.

    Returns:
        Its limits; None if a sample has fewer than two clusters.
    """
    from scipy import stats

    variance, counts = 0.0, []
    for sample, numbers in ((values, clusters), (others, other_clusters)):
        _, indices = np.unique(numbers, return_inverse=True)
        sums = np.bincount(indices, weights=sample - sample.mean())
        counts.append(len(sums))
        if len(sums) < 2:
            return None
        variance += len(sums) / (len(sums) - 1) * float((sums**2).sum()) / len(sample) ** 2
    mean = float(values.mean() - others.mean())
    half_width = float(stats.t.ppf(0.975, min(counts) - 1)) * math.sqrt(variance)
    return mean - half_width, mean + half_width


def over_tasks(tasks: Mapping[str, TaskMetrics]) -> tuple[dict[str, float], dict[str, float]]:
    """The worst task's value of each ranked metric, and its mean over the tasks that have it."""
    worst, average = {}, {}
    for metric, better in BETTER.items():
        values = [measured[metric] for measured in tasks.values() if metric in measured]
        if values:
            worst[metric] = max(values) if better == "lower" else min(values)
            average[metric] = float(np.mean(values))
    return worst, average
