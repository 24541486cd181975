"""The models' results on benchmarks, beside their leaderboard."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from automixalign.report.leaderboard import Entry
from automixalign.scoring.benchmarks.results import RESULTS, STDERR
from automixalign.storage import files


def add_benchmarks(entries: Iterable[Entry], results: Iterable[Path]) -> None:
    """Add `benchmarks` to the entries of the models that solved them: benchmark -> metric -> value.

    The first metric heads the benchmark's column. `METRIC_stderr` is its standard error.

    Args:
        entries: the leaderboard; changed in place.
        results: folders that `benchmark` wrote.
    """
    facts = {each["model"]: each for each in (files.read_json(folder / RESULTS) for folder in results)}
    for entry in entries:
        if entry["model"] in facts:
            solved = facts[entry["model"]]["benchmarks"]
            entry["benchmarks"] = {name: each["metrics"] for name, each in solved.items()}


def benchmark_table(entries: Iterable[Entry]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the benchmarks, each with its first metric and the standard error."""
    solved = [(entry, entry["benchmarks"]) for entry in entries if "benchmarks" in entry]
    columns = [f"{name} {next(iter(metrics))}" for name, metrics in solved[0][1].items()] if solved else []
    rows = [
        [entry["model"], entry["family"], *map(_first_metric, benchmarks.values())]
        for entry, benchmarks in solved
    ]
    return ["model", "family", *columns], rows


def _first_metric(metrics: Mapping[str, float]) -> str:
    name, value = next(iter(metrics.items()))
    error = metrics.get(f"{name}{STDERR}")
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"
