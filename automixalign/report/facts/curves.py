"""Training curves that are small enough for a page: smoothed, thinned out, rounded."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Row = Mapping[str, Any]
Floats = npt.NDArray[np.float64]

_SMOOTHED_METRICS = ("loss", "excess", "accuracy", "margin", "clipped")
"""Task weights are not smoothed."""
MAX_POINTS = 200
_WINDOWS_PER_TRAINING = 20


def curves(rows: Sequence[Row]) -> dict[str, Any]:
    """The curves of one training, by metric and task.

    Args:
        rows: the per-step log.

    Returns:
        `steps`, `window` (how many steps a running mean covers), `weights`, and each metric of the log.
    """
    window = max(1, len(rows) // _WINDOWS_PER_TRAINING)
    points = _points(len(rows))
    tasks = list(rows[0]["weights"])
    result: dict[str, Any] = {
        "steps": [rows[index]["step"] for index in points],
        "window": window,
        "weights": {task: [_round(rows[index]["weights"][task]) for index in points] for task in tasks},
    }
    for metric in _SMOOTHED_METRICS:
        if metric in rows[0]:
            result[metric] = {
                task: [_round(value) for value in running_mean(*_column(rows, metric, task), window)[points]]
                for task in tasks
            }
    return result


def validation_curves(rows: Sequence[Row], cost: Mapping[str, Any]) -> dict[str, Any]:
    """What the validations during a training measured; empty without one.

    Args:
        rows: the per-step log.
        cost: what the training returned.

    Returns:
        `steps`; each measure by task: `loss`, of a generalist also `gap`; `worst`: the largest gap of each step
        (of a specialist, its loss); `kept_step`: whose policy is the model; `kept_worst` and `last_worst`: the
        value of `worst` at this step and at the last one. None for what is unknown.
    """
    validations = {row["step"]: row["validation"] for row in rows if "validation" in row}
    if not validations:
        return {}
    last = validations[max(validations)]
    worst = {step: max(each["gap" if "gap" in last else "loss"].values()) for step, each in validations.items()}
    steps = [list(validations)[index] for index in _points(len(validations))]
    kept = int(cost["kept_step"]) if "kept_step" in cost else None
    return {
        "steps": steps,
        **{
            measure: {
                task: [_round(validations[step][measure][task]) for step in steps] for task in last[measure]
            }
            for measure in ("loss", "gap")
            if measure in last
        },
        "worst": [_round(worst[step]) for step in steps],
        "kept_step": kept,
        "kept_worst": worst.get(kept),
        "last_worst": worst[max(worst)],
    }


def last_mean(rows: Sequence[Row], metric: str, task: str) -> float | None:
    """Mean of a metric over the task's pairs in the last quarter of a training; None without pairs."""
    values, pairs = _column(rows[-max(1, len(rows) // 4) :], metric, task)
    return float((values * pairs).sum() / pairs.sum()) if pairs.sum() else None


def running_mean(values: Floats, counts: Floats, window: int) -> Floats:
    """Mean over the last `window` steps, weighted by counts; NaN if these are all 0.

    Args:
        values: a mean in each step.
        counts: over how many pairs each of them is a mean.
    """

    def window_sums(summands: Floats) -> Floats:
        sums = np.concatenate([np.zeros(window), np.cumsum(summands)])
        return np.asarray(sums[window:] - sums[:-window], dtype=np.float64)

    totals = window_sums(counts)
    return np.where(totals > 0, window_sums(values * counts) / np.maximum(totals, 1), np.nan)


def _points(count: int) -> npt.NDArray[np.int64]:
    """The indices of at most `MAX_POINTS` of `count` points, with both ends."""
    return np.unique(np.linspace(0, count - 1, min(MAX_POINTS, count)).round().astype(np.int64))


def _column(rows: Sequence[Row], metric: str, task: str) -> tuple[Floats, Floats]:
    """A metric's mean in each step, and over how many pairs."""
    values = np.array([row[metric][task] or 0.0 for row in rows], dtype=np.float64)
    return values, np.array([row["pairs"][task] for row in rows], dtype=np.float64)


def _round(value: float) -> float | None:
    return None if np.isnan(value) else float(f"{value:.4g}")
