"""The leaderboard: every model on every task, on average and on its worst task."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from automixalign.config.training import specialist_name
from automixalign.data.store import TEST, VALIDATION
from automixalign.scoring import caches
from automixalign.scoring.caches import SUMMARY
from automixalign.scoring.metrics import BETTER, excess, gap, over_tasks
from automixalign.storage import files
from automixalign.system.errors import CacheError

Entry = dict[str, Any]
NOT_MEASURED = "–"  # noqa: RUF001  a dash for no value
CANDIDATES = ("generalist", "merge")
"""The families of models that compete; the others are what they are compared with."""


def build(evaluations: Iterable[Path], order: Iterable[str]) -> list[Entry]:
    """Make the leaderboard from the evaluations of all models.

    Excess and gap compare a model with the specialist of each task, pair by pair.

    Args:
        evaluations: folders that `evaluate` wrote.
        order: the models' names, in the order of the leaderboard.

    Returns:
        For each model its `tasks`, and its `average` and `worst` over them, on the test split. `validation`
        holds the same three of the validation split, if every evaluation measured it.

    Raises:
        CacheError: a model or a task's specialist was not evaluated, or not on the same tasks and pairs; a
            metric is not finite, or does not agree with the scores.
    """
    folders, names = list(evaluations), list(order)
    entries = _measured(folders, names, TEST)
    held_out = [folder / VALIDATION for folder in folders]
    if all(folder.is_dir() for folder in held_out):
        for entry, chosen_by in zip(entries, _measured(held_out, names, VALIDATION), strict=True):
            entry[VALIDATION] = {key: chosen_by[key] for key in ("tasks", "average", "worst")}
    return entries


def _measured(evaluations: Iterable[Path], order: Iterable[str], split: str) -> list[Entry]:
    folders = {files.read_json(folder / SUMMARY)["model"]: folder for folder in evaluations}
    specialists: dict[str, pa.Table] = {}
    entries: list[Entry] = []
    for name in order:
        if name not in folders:
            raise CacheError(f"the model {name} was not evaluated on the {split} split")
        summary = files.read_json(folders[name] / SUMMARY)
        if entries and summary["tasks"].keys() != entries[0]["tasks"].keys():
            raise CacheError(
                f"{folders[name]}: {name} was evaluated on {', '.join(summary['tasks'])}, but "
                f"{entries[0]['model']} on {', '.join(entries[0]['tasks'])}; evaluate both again"
            )
        tasks = {}
        for task, measured in summary["tasks"].items():
            if task not in specialists:
                specialists[task] = _specialist_scores(folders, task)
            compared = _compare(folders[name], specialists[task], f"{task}, {split}", task, measured)
            tasks[task] = {**compared, **measured}
        worst, average = over_tasks(tasks)
        entry = {"model": name, "family": summary["family"], "tasks": tasks}
        entries.append({**entry, "average": average, "worst": worst})
    return entries


def _specialist_scores(folders: Mapping[str, Path], task: str) -> pa.Table:
    folder = folders.get(specialist_name(task))
    if folder is None:
        raise CacheError(f"the specialist of task {task} was not evaluated")
    return caches.read_scores(folder, task, caches.LOSS)


def _compare(
    folder: Path, specialist: pa.Table, title: str, task: str, measured: Mapping[str, float]
) -> dict[str, float]:
    """Excess and gap of a model on one task."""
    scores = caches.read_scores(folder, task, caches.LOSS)
    ids = scores.column("pair_id").to_pylist()
    aligned = caches.join(specialist, ids, f"specialist of {title}")
    if len(specialist) != len(aligned):
        raise CacheError(
            f"{folder}: has {len(aligned)} pairs of task {task}, but its specialist {len(specialist)}; "
            "evaluate again"
        )
    losses, specialist_losses = (caches.column(table, caches.LOSS) for table in (scores, aligned))
    _check_summary(folder, task, measured, float(losses.mean()))
    return {"excess": excess(losses, specialist_losses), "gap": gap(losses, specialist_losses)}


def _check_summary(folder: Path, task: str, measured: Mapping[str, float], loss: float) -> None:
    """Check that a summary is finite, and agrees with the scores beside it."""
    for metric, value in measured.items():
        if not math.isfinite(value):
            raise CacheError(f"{folder / SUMMARY}: the {metric} of task {task} is {value}; evaluate it again")
    if not math.isclose(measured["loss"], loss, rel_tol=1e-6, abs_tol=1e-9):
        raise CacheError(
            f"{folder / SUMMARY}: the loss of task {task} is {measured['loss']:g}, but its scores have "
            f"{loss:g}; evaluate it again"
        )


def chosen(entries: Iterable[Entry]) -> Entry | None:
    """The model that a run recommends, registers and serves, chosen on the validation split.

    Returns:
        The generalist or merge with the smallest gap on its worst task of the validation split. Its numbers on
        the test split had no part in the choice. None if the run has no validation split.
    """
    candidates = [entry for entry in entries if entry["family"] in CANDIDATES and VALIDATION in entry]
    return min(candidates, key=lambda entry: float(entry[VALIDATION]["worst"]["gap"]), default=None)


def choice(entries: Iterable[Entry]) -> str:
    """One sentence: the chosen model, and its results on both splits."""
    entry = chosen(entries)
    if entry is None:
        return "No model is chosen: the run has no validation split to choose on (split.validation)."
    gaps = (entry[VALIDATION]["worst"]["gap"], entry["worst"]["gap"])
    return (
        f"Chosen on the validation split: {entry['model']}, with the smallest worst-task gap, {gaps[0]:.3f}. "
        f"On the test split, which had no part in the choice, its worst-task gap is {gaps[1]:.3f}."
    )


def best(entries: list[Entry], view: str, metric: str) -> str | None:
    """The best generalist or merge by a metric of `average` or `worst`; None if none of them has it."""
    values = {
        entry["model"]: entry[view][metric]
        for entry in entries
        if entry["family"] in CANDIDATES and metric in entry[view]
    }
    if not values:
        return None
    winner: str = (min if BETTER[metric] == "lower" else max)(values, key=values.__getitem__)
    return winner


def table(entries: list[Entry], metrics: Iterable[str] = tuple(BETTER)) -> tuple[list[str], list[list[str]]]:
    """The leaderboard as header and rows of text: worst and average of each metric, best in bold (`**`)."""
    columns = [
        (view, metric)
        for metric in metrics
        for view in ("worst", "average")
        if any(metric in entry[view] for entry in entries)
    ]
    winners = {column: best(entries, *column) for column in columns}
    header = ["model", "family", *(f"{view} {metric}" for view, metric in columns)]
    rows = []
    for entry in entries:
        cells = []
        for view, metric in columns:
            value = f"{entry[view][metric]:.3f}" if metric in entry[view] else NOT_MEASURED
            cells.append(f"**{value}**" if winners[view, metric] == entry["model"] else value)
        rows.append([entry["model"], entry["family"], *cells])
    return header, rows


def verdict(entries: list[Entry]) -> str:
    """How the models rank on the test split by worst-task excess: the first, and the chosen or the next one."""
    ranked = sorted(
        (entry for entry in entries if entry["family"] in CANDIDATES),
        key=lambda entry: float(entry["worst"]["excess"]),
    )
    first, others, selected = ranked[0], ranked[1:], chosen(entries)
    excess = f"{first['worst']['excess']:.3f}"
    if not others:
        return f"On the test split, {first['model']} has a worst-task excess of {excess}."
    if selected is None or selected is first:
        which = "The next" if selected is None else "The chosen model is first here, too. The next"
        second, relation = others[0], f"{which} is {others[0]['model']}, with"
    else:
        second, relation = selected, f"The chosen model, {selected['model']}, has"
    return (
        f"On the test split, {first['model']} has the smallest worst-task excess, {excess}. "
        f"{relation} {second['worst']['excess']:.3f}. One seed: the difference is not certain."
    )


def conclusions(entries: list[Entry]) -> list[str]:
    """Which model is chosen, on the validation split; then how the models rank, on the test split."""
    return [choice(entries), verdict(entries)]
