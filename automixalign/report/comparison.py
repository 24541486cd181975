"""Several runs of one experiment side by side: the same models, paired by seed."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from automixalign.config.file import dump_yaml
from automixalign.report import leaderboard, page
from automixalign.report.leaderboard import RANKED_BY
from automixalign.report.runs import Run
from automixalign.scoring.intervals import Estimate, student_interval
from automixalign.scoring.metrics.registry import ranked_metrics
from automixalign.system.errors import ConfigError
from automixalign.system.flatten import flatten
from automixalign.system.schema import did_you_mean


def compare_runs(folders: Sequence[Path], baseline: str | None = None) -> dict[str, Any]:
    """The facts of the page that compares runs.

    Args:
        folders: two run folders or more.
        baseline: the model that the others are compared with by worst-task gap, run by run; by default that of
            a single run.

    Raises:
        ConfigError: a folder is not that of a finished run; two runs differ in more than the seed, or have the
            same seed; no model has the name of the baseline.
    """
    runs = sorted((Run.read(folder) for folder in folders), key=lambda run: run.experiment.seed)
    _check_settings(runs)
    boards = [{entry["model"]: entry for entry in run.entries} for run in runs]
    baseline = baseline or leaderboard.baseline(runs[0].entries) or ""
    if baseline not in boards[0]:
        hint = did_you_mean(baseline, boards[0])
        raise ConfigError(
            f"--baseline {baseline}: there is no such model{hint}; there are: {', '.join(boards[0])}"
        )
    models = [_model(name, boards, baseline) for name in boards[0]]
    experiment = runs[0].experiment
    libraries = [run.page_facts().get("library") for run in runs]
    return {
        "kind": "comparison",
        "name": f"{experiment.name}: {len(runs)} runs",
        "verdict": _verdict(models, baseline, len(runs)),
        "baseline": baseline,
        "metrics": {name: metric.facts() for name, metric in ranked_metrics().items()},
        "runs": [
            {"seed": run.experiment.seed, "folder": str(run.folder), "library": library}
            for run, library in zip(runs, libraries, strict=True)
        ],
        "models": models,
        "config": dump_yaml(experiment),
        "limits": _limits(libraries),
    }


def write_comparison(folders: Sequence[Path], output: Path, baseline: str | None = None) -> None:
    """Write the page that compares runs; see `compare_runs`.

    Raises:
        ConfigError: the runs cannot be compared, or the page cannot be written.
    """
    data = compare_runs(folders, baseline)
    try:
        page.write(data, output)
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written: {error}") from error


def _limits(libraries: Sequence[str | None]) -> list[str]:
    sentences = [
        f"{len(libraries)} seeds: the interval assumes normally distributed differences, which so few runs "
        "cannot confirm. With several intervals, it is more likely that one of them is wrong.",
        "The same runs select and measure the model of the first sentence. They overestimate its advantage.",
        "All runs share their configuration. The result says nothing about another model, budget, learning "
        "rate or data.",
    ]
    if len(set(libraries)) > 1:
        sentences.append("Different versions of the library made these runs (see the table of runs).")
    return sentences


def _model(name: str, boards: Sequence[Mapping[str, Any]], baseline: str) -> dict[str, Any]:
    entries = [board[name] for board in boards]
    each = [entry["worst"][RANKED_BY] for entry in entries]
    differences = [
        value - board[baseline]["worst"][RANKED_BY] for value, board in zip(each, boards, strict=True)
    ]
    return {
        "model": name,
        "family": entries[0]["family"],
        "each": each,
        "difference": None if name == baseline else student_interval(differences)._asdict(),
        "wins": sum(difference < 0 for difference in differences),
        **{
            view: {metric: _mean([entry[view].get(metric) for entry in entries]) for metric in ranked_metrics()}
            for view in ("worst", "average")
        },
    }


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return statistics.fmean(numbers) if len(numbers) == len(values) else None


def _verdict(models: Sequence[Mapping[str, Any]], baseline: str, runs: int) -> str:
    ranked = [model for model in models if model["family"] in leaderboard.CANDIDATES]
    first = min(ranked, key=lambda model: float(model["worst"][RANKED_BY]))
    opening = (
        f"{first['model']} has the smallest mean worst-task {RANKED_BY} over {runs} runs, "
        f"{first['worst'][RANKED_BY]:.3f}"
    )
    if first["difference"] is None:
        return f"{opening}; it is the baseline."
    difference = Estimate(**first["difference"])
    side = "below" if difference.mean < 0 else "above"
    certain = "excludes 0" if difference.resolved else "contains 0, so this is not resolved"
    return (
        f"{opening}: {abs(difference.mean):.3f} {side} {baseline} ({difference.low:+.3f} to "
        f"{difference.high:+.3f}), better in {first['wins']} of {runs} runs; its 95 % interval {certain}."
    )


def _check_settings(runs: Sequence[Run]) -> None:
    """Refuse runs that differ in more than the seed, or have the same seed."""
    first, *others = runs
    expected = dict(flatten(first.experiment.model_dump(mode="json")))
    for run in others:
        settings = dict(flatten(run.experiment.model_dump(mode="json")))
        for key in [*expected, *settings]:
            differs = (key in expected, expected.get(key)) != (key in settings, settings.get(key))
            if key != "seed" and differs:
                values = [repr(each[key]) if key in each else "absent" for each in (expected, settings)]
                raise ConfigError(
                    f"{first.folder} and {run.folder} cannot be compared: only the seed may differ, but {key} "
                    f"is {values[0]} in the one and {values[1]} in the other"
                )
    for one, two in zip(runs, others, strict=False):
        if one.experiment.seed == two.experiment.seed:
            raise ConfigError(
                f"{one.folder} and {two.folder} have the same seed, {one.experiment.seed}; name one of them"
            )
