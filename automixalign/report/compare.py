"""The stage `compare`: leaderboard, plots, and the page that shows what the run found."""

import html
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from automixalign.config.experiment import ComparisonSettings, Experiment, model_names
from automixalign.report import leaderboard, page, plots
from automixalign.report.benchmark_table import add_benchmarks, benchmark_table
from automixalign.report.facts.collect import RunResults, collect
from automixalign.scoring.metrics.registry import ranked_metrics
from automixalign.steps.artifacts import Artifact
from automixalign.steps.step import current_step
from automixalign.storage import files
from automixalign.system.errors import CacheError
from automixalign.system.flatten import flatten


@dataclass(frozen=True, kw_only=True)
class ReportPaths:
    """Where `compare` writes.

    Args:
        leaderboard, markdown: the leaderboard as JSON, and as a table in Markdown.
        plots: a folder of PNG files.
        page, facts: the report as one HTML file, and its content as JSON.
    """

    leaderboard: Path
    markdown: Path
    plots: Path
    page: Path
    facts: Path

    @classmethod
    def of_artifacts(cls, artifacts: Mapping[str, Artifact]) -> Self:
        """The paths of artifacts by field; notes the place of each in a run folder in its metadata."""
        for name, artifact in artifacts.items():
            artifact.metadata["run_path"] = RUN_PATHS[name]
        return cls(**{name: Path(artifact.path) for name, artifact in artifacts.items()})


RUN_PATHS: Mapping[str, str] = {
    "leaderboard": "leaderboard.json",
    "markdown": "leaderboard.md",
    "plots": "plots",
    "page": "report/index.html",
    "facts": "report/data.json",
}
"""Field of `ReportPaths` -> its path in a run folder."""


def compare(settings: ComparisonSettings, results: RunResults, paths: ReportPaths) -> dict[str, float]:
    """Write the leaderboard, the plots and the report of a run.

    Returns:
        `headline_metrics`.

    Raises:
        CacheError: the evaluation of one of the experiment's models is missing, or a value is not finite.
    """
    experiment = settings.experiment
    for log in results.trajectories.values():
        _check_trajectory(log)
    entries = leaderboard.build(results.evaluations, model_names(experiment))
    add_benchmarks(entries, results.benchmarks)
    files.write_json(paths.leaderboard, entries)
    with files.replacing(paths.plots) as folder:
        folder.mkdir()
        logs = {m.name: files.read_jsonl(results.trajectories[m.name]) for m in experiment.methods}
        plots.weight_trajectories(logs, folder / "task_weights.png")
        for metric in ranked_metrics():
            plots.task_bars(entries, metric, folder / f"{metric}.png")
    files.write_text(paths.markdown, as_markdown(entries))
    page.write(collect(settings, entries, results), paths.page, paths.facts)
    record = current_step().record
    record.of_pipeline = True
    headline = headline_metrics(entries)
    record.add_metrics(headline)
    if entry := leaderboard.chosen(entries):
        record.add_params({"best_model": entry["model"]})
    record.description = _description(experiment, entries)
    for name in ("leaderboard", "page", "facts", "plots"):
        record.add_artifact(getattr(paths, name), RUN_PATHS[name])
    return headline


def _check_trajectory(log: Path) -> None:
    """Check that every value of a training's log is finite or null.

    Raises:
        CacheError: the message names file and line.
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


def _description(experiment: Experiment, entries: list[leaderboard.Entry]) -> str:
    """What the run is, and what came out, in Markdown."""
    tasks = ", ".join(task.name for task in experiment.tasks)
    made = f"AutoMixAlign on the tasks {tasks}, from the base model {experiment.base_model.source}."
    return "\n\n".join(map(_escape, [made, *leaderboard.conclusions(entries)]))


def headline_metrics(entries: list[leaderboard.Entry]) -> dict[str, float]:
    """The chosen model on its worst task of the test split, to compare runs; empty if none is chosen."""
    entry = leaderboard.chosen(entries)
    if entry is None:
        return {}
    metrics = ranked_metrics()
    return {f"worst_{name}": value for name, value in entry["worst"].items() if metrics[name].headline}


def as_markdown(entries: list[leaderboard.Entry]) -> str:
    """The leaderboard and its intervals as tables; KFP's page renders it, and would also render HTML in it."""
    parts = list(map(_escape, leaderboard.conclusions(entries)))
    tables = (leaderboard.table(entries), leaderboard.details(entries), benchmark_table(entries))
    for header, rows in tables:
        if not rows:
            continue
        escaped = [[*map(_escape, (first, second)), *numbers] for first, second, *numbers in rows]
        lines = [map(_escape, header), ["---"] * len(header), *escaped]
        parts.append("\n".join("| " + " | ".join(cells) + " |" for cells in lines))
    return "\n\n".join([*parts, ""])


def _escape(text: str) -> str:
    """The text, so that it is neither HTML nor Markdown."""
    return re.sub(r"([\\`*\[\]#|~])", r"\\\1", html.escape(" ".join(text.split())))
