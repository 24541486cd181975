"""The leaderboard: every model on every task, on average and on its worst task."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from automixalign.data.store import TEST, VALIDATION
from automixalign.report.task_scores import TaskScores, check_summary, read_task_scores
from automixalign.scoring.caches import SUMMARY
from automixalign.scoring.intervals import Estimate, percentile_interval
from automixalign.scoring.metrics.registry import over_tasks, ranked_metrics
from automixalign.storage import files
from automixalign.system.errors import CacheError

Entry = dict[str, Any]
NOT_MEASURED = "–"  # noqa: RUF001  a dash for no value
CANDIDATES = ("generalist", "merge")
"""The families of models that compete; the others are what they are compared with."""
BASELINE = "uniform"
RANKED_BY = "gap"
"""The metric whose worst task ranks the models: on the clipped excess, models that train on it look better."""


def build(evaluations: Iterable[Path], order: Iterable[str]) -> list[Entry]:
    """Make the leaderboard from the evaluations of all models.

    Args:
        evaluations: folders that `evaluate` wrote.
        order: the models' names, in the order of the leaderboard.

    Returns:
        For each model its `tasks`, and its `average` and `worst` over them, on the test split. `intervals`:
        the 95 % interval of each metric on each task. `difference`: the paired difference to the run's baseline
        on each task, and its interval; `worst_difference`: that of the two worst tasks. Only generalists and
        merges other than the baseline have them. `validation`: `tasks`, `average` and `worst` of the validation
        split, if every evaluation measured it.

    Raises:
        CacheError: a model or a task's specialist was not evaluated, or not on the same tasks and pairs; a
            metric is not finite, or does not agree with the scores.
    """
    folders, names = list(evaluations), list(order)
    entries, scores = _measured(folders, names, TEST)
    reference = baseline(entries)
    for entry in entries:
        entry["intervals"] = {task.task: task.intervals(entry["model"]) for task in scores}
        if entry["family"] in CANDIDATES and reference not in (None, entry["model"]):
            differences = {task.task: task.differences(entry["model"], reference) for task in scores}
            entry["difference"] = {
                task: {metric: value._asdict() for metric, value in each.items()}
                for task, each in differences.items()
            }
            entry["worst_difference"] = _worst_differences(scores, entry["model"], reference)
    held_out = [folder / VALIDATION for folder in folders]
    if all(folder.is_dir() for folder in held_out):
        chosen_by, _ = _measured(held_out, names, VALIDATION)
        for entry, other in zip(entries, chosen_by, strict=True):
            entry[VALIDATION] = {key: other[key] for key in ("tasks", "average", "worst")}
    return entries


def _measured(
    evaluations: Iterable[Path], order: list[str], split: str
) -> tuple[list[Entry], list[TaskScores]]:
    """The entries without intervals, and the scores of each task."""
    folders = {files.read_json(folder / SUMMARY)["model"]: folder for folder in evaluations}
    summaries: dict[str, dict[str, Any]] = {}
    for name in order:
        if name not in folders:
            raise CacheError(f"the model {name} was not evaluated on the {split} split")
        summaries[name] = files.read_json(folders[name] / SUMMARY)
        tasks, others = summaries[name]["tasks"], summaries[order[0]]["tasks"]
        if tasks.keys() != others.keys():
            raise CacheError(
                f"{folders[name]}: {name} was evaluated on {', '.join(tasks)}, but {order[0]} on "
                f"{', '.join(others)}; evaluate both again"
            )
    scores = [
        read_task_scores(folders, order, task, f"{task}, {split}") for task in summaries[order[0]]["tasks"]
    ]
    entries: list[Entry] = []
    for name, summary in summaries.items():
        measured = {task.task: task.means(name) for task in scores}
        for task, computed in measured.items():
            check_summary(folders[name], task, summary["tasks"][task], computed)
        worst, average = over_tasks(measured)
        entry = {"model": name, "family": summary["family"], "tasks": measured}
        entries.append({**entry, "average": average, "worst": worst})
    return entries, scores


def baseline(entries: Iterable[Entry]) -> str | None:
    """What the others of a run are compared with: `uniform`, or else its first generalist or merge."""
    candidates = [entry["model"] for entry in entries if entry["family"] in CANDIDATES]
    return BASELINE if BASELINE in candidates else next(iter(candidates), None)


def chosen(entries: Iterable[Entry]) -> Entry | None:
    """The model that a run recommends, registers and serves, chosen on the validation split.

    Returns:
        The generalist or merge with the smallest gap on its worst task of the validation split. Its numbers on
        the test split had no part in the choice. None if the run has no validation split.
    """
    candidates = [entry for entry in entries if entry["family"] in CANDIDATES and VALIDATION in entry]
    return min(candidates, key=lambda entry: float(entry[VALIDATION]["worst"][RANKED_BY]), default=None)


def choice(entries: Iterable[Entry]) -> str:
    """One sentence: the chosen model, and its results on both splits."""
    entry = chosen(entries)
    if entry is None:
        return "No model is chosen: the run has no validation split to choose on (split.validation)."
    gaps = (entry[VALIDATION]["worst"][RANKED_BY], entry["worst"][RANKED_BY])
    return (
        f"Chosen on the validation split: {entry['model']}, with the smallest worst-task gap, {gaps[0]:.3f}. "
        f"On the test split, which had no part in the choice, its worst-task gap is {gaps[1]:.3f}."
    )


def _worst_differences(scores: list[TaskScores], model: str, other: str) -> dict[str, dict[str, float]]:
    """Ranked metric -> the model's value on its worst task less the other's on its own; and the interval.

    Which tasks are the worst is taken as fixed. An interval that resamples it, too, is wrong if several tasks
    of a model are about equally bad, as AMA makes them: the worst of more noisy values is worse.
    """
    result, by_task = {}, {task.task: task for task in scores}
    for name, metric in ranked_metrics().items():
        worst = {}
        for each in (model, other):
            values = {key: task.means(each)[name] for key, task in by_task.items() if name in task.values[each]}
            if values:
                worst[each] = by_task[metric.worst(values)]
        if len(worst) == 2 and all((each, name) in task.resampled for each, task in worst.items()):
            mean = worst[model].means(model)[name] - worst[other].means(other)[name]
            resampled = worst[model].resampled[model, name] - worst[other].resampled[other, name]
            result[name] = Estimate(mean, *percentile_interval(resampled))._asdict()
    return result


def best(entries: list[Entry], view: str, metric: str) -> str | None:
    """The best generalist or merge by a metric of `average` or `worst`; None if none of them has it."""
    values = {
        entry["model"]: entry[view][metric]
        for entry in entries
        if entry["family"] in CANDIDATES and metric in entry[view]
    }
    if not values:
        return None
    is_lower = ranked_metrics()[metric].better == "lower"
    winner: str = (min if is_lower else max)(values, key=values.__getitem__)
    return winner


def columns(entries: list[Entry]) -> list[tuple[str, str]]:
    """The columns of the leaderboard: `worst` and `average` of each ranked metric that a model has."""
    return [
        (view, metric)
        for metric in ranked_metrics()
        for view in ("worst", "average")
        if any(metric in entry[view] for entry in entries)
    ]


def table(
    entries: list[Entry], chosen_columns: Iterable[tuple[str, str]] = ()
) -> tuple[list[str], list[list[str]]]:
    """The leaderboard as header and rows of text, the best generalist or merge in bold (`**`).

    Args:
        entries: the leaderboard.
        chosen_columns: of `columns`, by default all.
    """
    metrics, shown = ranked_metrics(), list(chosen_columns) or columns(entries)
    winners = {column: best(entries, *column) for column in shown}
    views = {"worst": "worst", "average": "mean"}
    header = ["model", "family", *(f"{views[view]} {metrics[name].title}" for view, name in shown)]
    rows = []
    for entry in entries:
        cells = []
        for view, name in shown:
            value = metrics[name].show(entry[view][name]) if name in entry[view] else NOT_MEASURED
            cells.append(f"**{value}**" if winners[view, name] == entry["model"] else value)
        rows.append([entry["model"], entry["family"], *cells])
    return header, rows


def details(entries: list[Entry]) -> tuple[list[str], list[list[str]]]:
    """Every ranked metric on every task, and the gap's difference to the baseline, with intervals, as text."""
    metrics = {metric: ranked_metrics()[metric] for view, metric in columns(entries) if view == "worst"}
    rows = []
    for task in entries[0]["tasks"]:
        for entry in entries:
            measured, intervals = entry["tasks"][task], entry.get("intervals", {}).get(task, {})
            cells = [
                _with_limits(metric.show, measured.get(name), intervals.get(name, ()))
                for name, metric in metrics.items()
            ]
            difference = entry.get("difference", {}).get(task, {}).get(RANKED_BY, {})
            value, *limits = difference.values() or (None,)
            cells.append(_with_limits("{:+.3f}".format, value, limits))
            rows.append([task, entry["model"], *cells])
    titles = [*(metric.title for metric in metrics.values()), f"{RANKED_BY}, less that of {baseline(entries)}"]
    return ["task", "model", *titles], rows


def _with_limits(show: Callable[[float], str], value: float | None, limits: Iterable[float]) -> str:
    if value is None:
        return NOT_MEASURED
    interval = ", ".join(map(show, limits))
    return f"{show(value)} [{interval}]" if interval else show(value)


def verdict(entries: list[Entry]) -> str:
    """How the models rank on the test split by worst-task gap, and whether the baseline differs from the first.

    The first model is compared with the chosen one, or else the next.
    """
    ranked = sorted(
        (entry for entry in entries if entry["family"] in CANDIDATES),
        key=lambda entry: float(entry["worst"][RANKED_BY]),
    )
    first, others, selected = ranked[0], ranked[1:], chosen(entries)
    gap = f"{first['worst'][RANKED_BY]:.3f}"
    if not others:
        return f"On the test split, {first['model']} has a worst-task gap of {gap}."
    if selected is None or selected is first:
        which = "The next" if selected is None else "The chosen model is first here, too. The next"
        second, relation = others[0], f"{which} is {others[0]['model']}, with"
        compared = [first, second]
    else:
        second, relation = selected, f"The chosen model, {selected['model']}, has"
        compared = [selected, first]
    return (
        f"On the test split, {first['model']} has the smallest worst-task gap, {gap}. "
        f"{relation} {second['worst'][RANKED_BY]:.3f}. {_resolution(compared, entries)}"
    )


def _resolution(models: list[Entry], entries: list[Entry]) -> str:
    """Whether the run resolves the difference to the baseline: of the first model that is not itself that."""
    reference = baseline(entries)
    compared = next(model for model in models if model["model"] != reference)
    difference = compared.get("worst_difference", {}).get(RANKED_BY)
    if difference is None:
        return "One seed: the difference is not certain."
    estimate = Estimate(**difference)
    resolved = "resolved" if estimate.resolved else "not resolved, because its interval contains 0.000"
    return (
        f"The worst-task gap of {compared['model']} is {abs(estimate.mean):.3f} "
        f"{'below' if estimate.mean < 0 else 'above'} that of {reference}, with the 95 % interval "
        f"{estimate.low:+.3f} to {estimate.high:+.3f} over test prompts: {resolved}. Another seed may differ "
        "by more."
    )


def conclusions(entries: list[Entry]) -> list[str]:
    """Which model is chosen, on the validation split; then how the models rank, on the test split."""
    return [choice(entries), verdict(entries)]
