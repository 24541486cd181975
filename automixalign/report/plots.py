"""Plots of a run: task weights over the steps, and each model on each task."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from automixalign.report.facts.curves import running_mean
from automixalign.report.leaderboard import Entry
from automixalign.scoring.metrics.registry import registered_metrics

mpl.use("Agg")  # no display in a container

import matplotlib.pyplot as plt

Trajectory = list[dict[str, Any]]
_WINDOW_STEPS = 20


def weight_trajectories(trajectories: Mapping[str, Trajectory], path: Path) -> None:
    """One row for each method: its task weights, and the smoothed excess of each task, over the steps."""
    figure, axes = plt.subplots(
        len(trajectories), 2, figsize=(11, 2.4 * len(trajectories)), sharex=True, sharey="col", squeeze=False
    )
    for (left, right), (name, rows) in zip(axes, trajectories.items(), strict=True):
        steps = [row["step"] for row in rows]
        for task in rows[0]["weights"]:
            left.plot(steps, [row["weights"][task] for row in rows], label=task)
            drawn = [row for row in rows if row["excess"][task] is not None]
            excess = np.array([row["excess"][task] for row in drawn])
            smooth = running_mean(excess, np.ones(len(drawn)), _WINDOW_STEPS)
            right.plot([row["step"] for row in drawn], smooth, label=task)
        left.set_ylabel(name)
    for column in axes[0]:
        column.set_ylim(bottom=0)
    axes[0][0].set_title("task weight")
    axes[0][1].set_title(f"training excess, mean over {_WINDOW_STEPS} steps")
    axes[0][1].legend(fontsize=8, loc="upper right")
    for axis in axes[-1]:
        axis.set_xlabel("optimiser step")
    _save(figure, path)


def task_bars(entries: list[Entry], metric: str, path: Path) -> None:
    """Bars of one metric: a group for each generalist or merge, a bar for each task that has the metric."""
    compared = [
        entry for entry in entries if entry["family"] in ("generalist", "merge") and metric in entry["average"]
    ]
    if not compared:
        return
    tasks = [task for task, measured in compared[0]["tasks"].items() if metric in measured]
    width = 0.8 / len(tasks)
    figure, axis = plt.subplots(figsize=(max(7, 1.1 * len(compared)), 3.6))
    for number, task in enumerate(tasks):
        positions = np.arange(len(compared)) + (number - (len(tasks) - 1) / 2) * width
        axis.bar(positions, [entry["tasks"][task][metric] for entry in compared], width, label=task)
    axis.set_xticks(range(len(compared)), [entry["model"] for entry in compared], rotation=30, ha="right")
    shown = registered_metrics()[metric]
    axis.set_title(f"{shown.title} on the test split ({shown.better} is better)")
    axis.legend(fontsize=8, ncols=len(tasks))
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)
