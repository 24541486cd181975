"""Several runs of one experiment side by side: the same models, paired by seed."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from automixalign.config.file import dump_yaml
from automixalign.report import page
from automixalign.report.runs import Run
from automixalign.system.errors import ConfigError
from automixalign.system.flatten import flatten

BASELINE = "uniform"
_LEVEL = 0.95


def compare_runs(folders: Sequence[Path], baseline: str = BASELINE) -> dict[str, Any]:
    """The facts of the page that compares runs.

    Args:
        folders: two run folders or more.
        baseline: the model whose worst-task excess the others' is held against, run by run.

    Raises:
        ConfigError: a folder is not that of a finished run; two runs differ in something else than the seed, or
            do not differ in it; no model is called like the baseline.
    """
    runs = sorted((Run.read(folder) for folder in folders), key=lambda run: run.experiment.seed)
    _check_that_only_the_seed_differs(runs)
    boards = [{entry["model"]: entry for entry in run.entries} for run in runs]
    if baseline not in boards[0]:
        raise ConfigError(f"--baseline {baseline}: there is no such model; there are: {', '.join(boards[0])}")
    base = [board[baseline]["worst"]["excess"] for board in boards]
    models = [_model(name, [board[name] for board in boards], base, baseline) for name in boards[0]]
    experiment = runs[0].experiment
    libraries = [run.kept().get("library") for run in runs]
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
        f"{len(libraries)} seeds: the interval takes the differences for draws from one bell curve, which so "
        "few cannot show; and several intervals side by side are not all right at once as often as one is.",
        "The model of the first sentence was picked by the same runs that measure it, which flatters it.",
        "All runs share their configuration: nothing here says how a method does with another model, budget, "
        "learning rate or data.",
    ]
    if len(set(libraries)) > 1:
        sentences.append(
            "The runs were not all made by the same version of the library (see the table of runs)."
        )
    return sentences


def _model(
    name: str, entries: Sequence[Mapping[str, Any]], base: Sequence[float], baseline: str
) -> dict[str, Any]:
    each = [entry["worst"]["excess"] for entry in entries]
    differences = [mine - other for mine, other in zip(each, base, strict=True)]
    return {
        "model": name,
        "family": entries[0]["family"],
        "each": each,
        "difference": None if name == baseline else interval(differences),
        "wins": sum(difference < 0 for difference in differences),
        **{
            f"{view}_{metric}": _mean([entry[view].get(metric) for entry in entries])
            for view, metric in (
                ("worst", "excess"),
                ("average", "excess"),
                ("worst", "accuracy"),
                ("worst", "pass_rate"),
            )
        },
    }


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean of two values or more, and its 95 % interval by Student's t: `mean`, `low`, `high`."""
    from scipy.stats import t

    mean = statistics.fmean(values)
    error = statistics.stdev(values) / math.sqrt(len(values))
    reach = float(t.ppf((1 + _LEVEL) / 2, len(values) - 1)) * error
    return {"mean": mean, "low": mean - reach, "high": mean + reach}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


def _verdict(models: Sequence[Mapping[str, Any]], baseline: str, runs: int) -> str:
    ranked = [model for model in models if model["family"] in ("generalist", "merge")]
    first = min(ranked, key=lambda model: float(model["worst_excess"]))
    mean = f"{first['worst_excess']:.3f}"
    opening = f"{first['model']} has the smallest mean worst-task excess over {runs} runs, {mean}"
    if first["difference"] is None:
        return f"{opening}; it is the baseline that the others are held against."
    gap = first["difference"]
    side = "below" if gap["mean"] < 0 else "above"
    open_still = gap["low"] <= 0 <= gap["high"]
    certain = f"its 95 % interval {'holds 0, so this is not certain' if open_still else 'excludes 0'}"
    return (
        f"{opening}: {abs(gap['mean']):.3f} {side} {baseline} ({gap['low']:+.3f} to {gap['high']:+.3f}), "
        f"better in {first['wins']} of {runs} runs; {certain}."
    )


def _check_that_only_the_seed_differs(runs: Sequence[Run]) -> None:
    first, *others = runs
    ours = dict(flatten(first.experiment.model_dump(mode="json")))
    for run in others:
        mine = dict(flatten(run.experiment.model_dump(mode="json")))
        for key in [*ours, *mine]:
            if key != "seed" and (key in ours, ours.get(key)) != (key in mine, mine.get(key)):
                raise ConfigError(
                    f"{first.folder} and {run.folder} cannot be compared: only the seed may differ, but {key} "
                    f"is {_shown(ours, key)} in the one and {_shown(mine, key)} in the other"
                )
    for one, two in zip(runs, others, strict=False):
        if one.experiment.seed == two.experiment.seed:
            raise ConfigError(
                f"{one.folder} and {two.folder} have the same seed, {one.experiment.seed}; name one of them"
            )


def _shown(settings: Mapping[str, Any], key: str) -> str:
    return repr(settings[key]) if key in settings else "absent"
