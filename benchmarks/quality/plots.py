"""Draws the page's plots: each setup's differences to uniform mixing, and the capacity map."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from automixalign.storage import files
from benchmarks.quality.results import HIGHER_IS_BETTER, CapacityMap, Cell, Comparison
from benchmarks.quality.tables import number, wins

_COLOURS = {"generalist": "tab:blue", "merge": "tab:orange"}
_CLOSE_UP_FACTOR = 4
"""A close-up is drawn when the farthest arm reaches more than this many times as far as the median arm."""
_LESS_IS_GOOD, _MORE_IS_GOOD = colormaps["RdBu_r"], colormaps["RdBu"]


def forest(comparisons: Sequence[Comparison], families: Sequence[str], title: str, path: Path) -> None:
    """Plot each arm's worst gap minus uniform's: mean, interval and wins.

    Args:
        families: of the comparisons' arms.
    """
    reach = [max(abs(value) for value in each.paired.difference if value is not None) for each in comparisons]
    near = 1.1 * float(np.median(reach))
    limits = [near, None] if 0 < near * _CLOSE_UP_FACTOR < max(reach) else [None]
    figure = Figure(figsize=(4.5 + 3.5 * len(limits), 1.4 + 0.28 * len(comparisons)), layout="constrained")
    panels = figure.subplots(1, len(limits), sharey=True, squeeze=False)[0]
    for axis, limit in zip(panels, limits, strict=True):
        _draw_differences(axis, comparisons, [_COLOURS[family] for family in families], limit)
    labels = [f"{each.arm}  {wins(each.paired)}" for each in comparisons]
    panels[0].set_yticks(range(len(labels)), labels, fontsize=8)
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    if len(limits) > 1:
        panels[0].set_title("close-up", fontsize=9)
        panels[1].set_title("all", fontsize=9)
    for family in dict.fromkeys(families):
        panels[-1].plot([], [], "o-", color=_COLOURS[family], label=family)
    panels[-1].legend(fontsize=8)
    figure.supxlabel("worst gap minus uniform's (left is better), mean and 95 % interval", fontsize=9)
    figure.suptitle(f"{title}; seeds in which the arm is better", fontsize=10)
    _save(figure, path)


def _draw_differences(
    axis: Any, comparisons: Sequence[Comparison], colours: Sequence[str], limit: float | None
) -> None:
    """Draw a point and a line an arm; an arm beyond the limit gets an arrow at the edge."""
    for place, (comparison, colour) in enumerate(zip(comparisons, colours, strict=True)):
        mean, low, high = comparison.paired.difference
        if limit is not None and abs(mean) > limit:
            axis.plot(np.sign(mean) * limit, place, ">" if mean > 0 else "<", color=colour, clip_on=False)
            continue
        if low is not None and high is not None:
            axis.hlines(place, low, high, color=colour, linewidth=2)
        axis.plot(mean, place, "o", color=colour, markersize=5)
    axis.axvline(0, color="black", linewidth=0.8)
    if limit is not None:
        axis.set_xlim(-limit, limit)
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="x", alpha=0.3)


def heat_maps(cells: CapacityMap, path: Path) -> None:
    """Plot AMA-R minus uniform: a row a metric, a column a number of tasks; blue means that AMA-R is better."""
    metrics, counts = cells.worst_metrics(), cells.axis("tasks")
    ranks, steps = cells.axis("rank"), cells.axis("steps")
    size = (2.2 + len(counts) * (0.8 + 0.75 * len(steps)), len(metrics) * (1.1 + 0.45 * len(ranks)))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(metrics), len(counts), squeeze=False)
    for row, metric in zip(axes, metrics, strict=True):
        grids = [
            [[cells.paired(Cell(count, rank, step), metric) for step in steps] for rank in ranks]
            for count in counts
        ]
        differences = np.array(
            [
                [[np.nan if cell is None else cell.difference.mean for cell in line] for line in grid]
                for grid in grids
            ]
        )
        furthest = float(np.nanmax(np.abs(differences))) or 1.0
        colours = _MORE_IS_GOOD if metric.endswith(HIGHER_IS_BETTER) else _LESS_IS_GOOD
        norm = Normalize(-furthest, furthest)
        for axis, count, grid, values in zip(row, counts, grids, differences, strict=True):
            axis.set_facecolor("0.85")  # cells that were not measured
            image = axis.imshow(
                np.ma.masked_invalid(values), cmap=colours, norm=norm, aspect="auto", origin="lower"
            )
            _write_cells(axis, grid, furthest)
            axis.set_xticks(range(len(steps)), [str(step) for step in steps], fontsize=8)
            axis.set_yticks(range(len(ranks)), [str(rank) for rank in ranks], fontsize=8)
            axis.set_title(f"{metric.replace('_', ' ')}, {count} tasks", fontsize=9)
        row[0].set_ylabel("capacity (rank)", fontsize=8)
        bar = figure.colorbar(image, ax=row.tolist())
        bar.set_label("AMA-R - uniform (blue: AMA-R is better)", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("steps", fontsize=8)
    _save(figure, path)


def _write_cells(axis: Any, grid: Sequence[Sequence[Any]], furthest: float) -> None:
    for up, line in enumerate(grid):
        for along, cell in enumerate(line):
            if cell is not None:
                mean = cell.difference.mean
                text = f"{number(mean, signed=True)}\n{cell.wins}/{cell.seeds}"
                colour = "white" if abs(mean) > 0.6 * furthest else "black"
                axis.text(along, up, text, ha="center", va="center", fontsize=7, color=colour)


def _save(figure: Figure, path: Path) -> None:
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata={"Software": None})
