"""Bring all evaluations together: leaderboard, plots, and the page that shows what the run found."""

import html
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from automixalign.config.experiment import ComparisonSettings, model_names
from automixalign.report import leaderboard, plots
from automixalign.report import page as report_page
from automixalign.report.collect import collect
from automixalign.scoring.metrics import BETTER
from automixalign.steps.step import current_step
from automixalign.storage import files
from automixalign.system.errors import CacheError
from automixalign.system.flatten import flatten


def compare(
    settings: ComparisonSettings,
    evaluations: Iterable[Path],
    trajectories: Mapping[str, Path],
    costs: Mapping[str, Mapping[str, Any]],
    data: Path,
    losses: Iterable[Path],
    board: Path,
    plot_folder: Path,
    markdown: Path,
    page: Path,
    facts: Path,
) -> list[leaderboard.Entry]:
    """Write `leaderboard.json`, the plots, and the leaderboard as Markdown, and the report.

    The report is one HTML page, and the facts on it as JSON.

    Args:
        evaluations: the folder of each model, in any order.
        trajectories: generalist or specialist -> its per-step log.
        costs: generalist or specialist -> what its training returned.
        data: the prepared splits.
        losses: the specialists' caches, one a task, in any order.

    Returns:
        The leaderboard.

    Raises:
        CacheError: the evaluation of a model of the experiment is missing, or something is not finite.
    """
    experiment = settings.experiment
    for log in trajectories.values():
        _check_trajectory(log)
    entries = leaderboard.build(evaluations, model_names(experiment))
    files.write_json(board, entries)
    with files.replacing(plot_folder) as folder:
        folder.mkdir()
        ordered = {m.name: files.read_jsonl(trajectories[m.name]) for m in experiment.methods}
        plots.weight_trajectories(ordered, folder / "task_weights.png")
        for metric in BETTER:
            plots.task_bars(entries, metric, folder / f"{metric}.png")
    files.write_text(markdown, as_markdown(entries))
    report_page.write(collect(settings, entries, trajectories, data, losses, costs), page, facts)
    record = current_step().record
    record.of_pipeline = True
    record.add_metrics(summary_metrics(entries))
    kept = {
        "leaderboard.json": board,
        "report/index.html": page,
        "report/data.json": facts,
        "plots": plot_folder,
    }
    for place, path in kept.items():
        record.add_artifact(path, place)
    return entries


def _check_trajectory(log: Path) -> None:
    """See that every value of a training's log is a number, or that there is none (null).

    Raises:
        CacheError: naming file and line.
    """
    with log.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                values = flatten(json.loads(line), "/")
            except ValueError as error:
                raise CacheError(
                    f"{log}:{number}: is no line of a training's log: {error}; train again"
                ) from error
            for key, value in values:
                if isinstance(value, float) and not math.isfinite(value):
                    raise CacheError(
                        f"{log}:{number}: {key} is {value}; train again, with a lower learning rate"
                    )


def summary_metrics(entries: list[leaderboard.Entry]) -> dict[str, float]:
    """`MODEL.worst.excess` and its like, for a metrics artifact."""
    return {
        f"{entry['model']}.{view}.{metric}": value
        for entry in entries
        for view in ("worst", "average")
        for metric, value in entry[view].items()
    }


def as_markdown(entries: list[leaderboard.Entry]) -> str:
    """The leaderboard as a table; KFP's page renders it, HTML in it included."""
    header, rows = leaderboard.table(entries)
    rows = [[*map(_escaped, (model, family)), *numbers] for model, family, *numbers in rows]
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
    return "\n".join([_escaped(leaderboard.verdict(entries)), "", *lines, ""])


def _escaped(text: str) -> str:
    """Text that is neither HTML nor Markdown."""
    return re.sub(r"([\\`*\[\]#|~])", r"\\\1", html.escape(" ".join(text.split())))
