"""Several runs of one experiment side by side: the same models, paired by seed."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from automixalign.config.file import dump_yaml
from automixalign.report import page
from automixalign.report.runs import Run
from automixalign.system.errors import ConfigError
from automixalign.system.flatten import flatten
from automixalign.system.schema import did_you_mean

BASELINE = "uniform"
_LEVEL = 0.95


def compare_runs(folders: Sequence[Path], baseline: str = BASELINE) -> dict[str, Any]:
    """The facts of the page that compares runs.

    Args:
        folders: two run folders or more.
        baseline: the model that the others are compared with by worst-task excess, run by run.

    Raises:
        ConfigError: a folder is not that of a finished run; two runs differ in more than the seed, or have the
            same seed; no model has the name of the baseline.
    """
    runs = sorted((Run.read(folder) for folder in folders), key=lambda run: run.experiment.seed)
    _check_settings(runs)
    boards = [{entry["model"]: entry for entry in run.entries} for run in runs]
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
        "runs": [
            {"seed": run.experiment.seed, "folder": str(run.folder), "library": library}
            for run, library in zip(runs, libraries, strict=True)
        ],
        "models": models,
        "config": dump_yaml(experiment),
        "limits": _limits(libraries),
    }


def write_comparison(folders: Sequence[Path], output: Path, baseline: str = BASELINE) -> None:
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
    each = [entry["worst"]["excess"] for entry in entries]
    differences = [board[name]["worst"]["excess"] - board[baseline]["worst"]["excess"] for board in boards]
    return {
        "model": name,
        "family": entries[0]["family"],
        "each": each,
        "difference": None if name == baseline else interval(differences),
        "wins": sum(difference < 0 for difference in differences),
        "worst_excess": statistics.fmean(each),
        "average_excess": _mean([entry["average"]["excess"] for entry in entries]),
        "worst_accuracy": _mean([entry["worst"].get("accuracy") for entry in entries]),
        "worst_pass_rate": _mean([entry["worst"].get("pass_rate") for entry in entries]),
    }


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean of two values or more, and its 95 % interval by Student's t: `mean`, `low`, `high`."""
    from scipy import stats

    mean = statistics.fmean(values)
    half_width = float(stats.t.ppf((1 + _LEVEL) / 2, len(values) - 1) * stats.sem(values))
    return {"mean": mean, "low": mean - half_width, "high": mean + half_width}


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return statistics.fmean(numbers) if len(numbers) == len(values) else None


def _verdict(models: Sequence[Mapping[str, Any]], baseline: str, runs: int) -> str:
    ranked = [model for model in models if model["family"] in ("generalist", "merge")]
    first = min(ranked, key=lambda model: float(model["worst_excess"]))
    mean = f"{first['worst_excess']:.3f}"
    opening = f"{first['model']} has the smallest mean worst-task excess over {runs} runs, {mean}"
    if first["difference"] is None:
        return f"{opening}; it is the baseline."
    difference = first["difference"]
    side = "below" if difference["mean"] < 0 else "above"
    uncertain = difference["low"] <= 0 <= difference["high"]
    certain = f"its 95 % interval {'contains 0, so this is not certain' if uncertain else 'excludes 0'}"
    limits = f"{difference['low']:+.3f} to {difference['high']:+.3f}"
    return (
        f"{opening}: {abs(difference['mean']):.3f} {side} {baseline} ({limits}), "
        f"better in {first['wins']} of {runs} runs; {certain}."
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
