"""Trajectories made small enough for a page: smoothed, thinned, rounded."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Row = Mapping[str, Any]
Floats = npt.NDArray[np.float64]
Curve = list[float | None]

SMOOTHED = ("loss", "excess", "accuracy", "margin", "clipped")
"""What is shown as a running mean over pairs; task weights are shown as they are."""

POINTS = 200
_WINDOWS = 20
_LAST = 4


def curves(rows: Sequence[Row]) -> dict[str, Any]:
    """The curves of one training: `steps`, `window` (steps of a running mean), and by metric and task."""
    window = max(1, len(rows) // _WINDOWS)
    kept = np.unique(np.linspace(0, len(rows) - 1, min(POINTS, len(rows))).round().astype(int))
    tasks = list(rows[0]["weights"])
    result: dict[str, Any] = {
        "steps": [rows[index]["step"] for index in kept],
        "window": window,
        "weights": {task: [_rounded(rows[index]["weights"][task]) for index in kept] for task in tasks},
    }
    for metric in SMOOTHED:
        if metric in rows[0]:
            result[metric] = {
                task: [_rounded(value) for value in _running_mean(*_column(rows, metric, task), window)[kept]]
                for task in tasks
            }
    return result


def last_mean(rows: Sequence[Row], metric: str, task: str) -> float | None:
    """Mean of a metric over the pairs of a task in the last quarter of a training; None if there were none."""
    values, pairs = _column(rows[-max(1, len(rows) // _LAST) :], metric, task)
    return float((values * pairs).sum() / pairs.sum()) if pairs.sum() else None


def _column(rows: Sequence[Row], metric: str, task: str) -> tuple[Floats, Floats]:
    """A metric's mean in each step, and the pairs it is the mean of."""
    values = np.array([row[metric][task] or 0.0 for row in rows], dtype=np.float64)
    return values, np.array([row["pairs"][task] for row in rows], dtype=np.float64)


def _running_mean(values: Floats, pairs: Floats, window: int) -> Floats:
    """Mean over the pairs of the last `window` steps; NaN where these had none."""

    def over_window(summands: Floats) -> Floats:
        sums = np.concatenate([np.zeros(window), np.cumsum(summands)])
        return np.asarray(sums[window:] - sums[:-window], dtype=np.float64)

    counts = over_window(pairs)
    return np.where(counts > 0, over_window(values * pairs) / np.maximum(counts, 1), np.nan)


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else float(f"{value:.4g}")
