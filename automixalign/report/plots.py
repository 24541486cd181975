"""Plots of a run: where the task weights went, and who does what on which task."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from automixalign.report.leaderboard import Entry
from automixalign.scoring.metrics import BETTER

mpl.use("Agg")  # no display in a container

import matplotlib.pyplot as plt

Trajectory = list[dict[str, Any]]
_SMOOTH = 20


def weight_trajectories(trajectories: Mapping[str, Trajectory], path: Path) -> None:
    """One row a method: its task weights, and the smoothed excess of each task, over the steps."""
    figure, axes = plt.subplots(
        len(trajectories), 2, figsize=(11, 2.4 * len(trajectories)), sharex=True, sharey="col", squeeze=False
    )
    for (left, right), (name, rows) in zip(axes, trajectories.items(), strict=True):
        steps = [row["step"] for row in rows]
        for task in rows[0]["weights"]:
            left.plot(steps, [row["weights"][task] for row in rows], label=task)
            seen = [(row["step"], row["excess"][task]) for row in rows if row["excess"][task] is not None]
            right.plot([step for step, _ in seen], _smooth([value for _, value in seen]), label=task)
        left.set_ylabel(name)
    for column in axes[0]:
        column.set_ylim(bottom=0)
    axes[0][0].set_title("task weight")
    axes[0][1].set_title(f"training excess, mean over {_SMOOTH} steps")
    axes[0][1].legend(fontsize=8, loc="upper right")
    for axis in axes[-1]:
        axis.set_xlabel("optimiser step")
    _save(figure, path)


def _smooth(values: list[float]) -> list[float]:
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return [float((sums[end] - sums[max(0, end - _SMOOTH)]) / min(end, _SMOOTH)) for end in range(1, len(sums))]


def task_bars(entries: list[Entry], metric: str, path: Path) -> None:
    """Bars of one metric for the models made for all tasks: a group a model, a bar a task with the metric."""
    shown = [
        entry for entry in entries if entry["family"] in ("generalist", "merge") and metric in entry["average"]
    ]
    if not shown:
        return
    tasks = [task for task, measured in shown[0]["tasks"].items() if metric in measured]
    width = 0.8 / len(tasks)
    figure, axis = plt.subplots(figsize=(max(7, 1.1 * len(shown)), 3.6))
    for number, task in enumerate(tasks):
        places = [at + (number - (len(tasks) - 1) / 2) * width for at in range(len(shown))]
        axis.bar(places, [entry["tasks"][task][metric] for entry in shown], width, label=task)
    axis.set_xticks(range(len(shown)), [entry["model"] for entry in shown], rotation=30, ha="right")
    axis.set_title(f"{metric.replace('_', ' ')} on the test split ({BETTER[metric]} is better)")
    axis.legend(fontsize=8, ncols=len(tasks))
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)
