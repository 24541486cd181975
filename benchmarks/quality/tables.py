"""The tables of one setup, and the README's of all."""

from collections.abc import Sequence

from benchmarks.quality import shown
from benchmarks.quality.comparisons import (
    BASELINE,
    Comparison,
    compared,
    second_measure,
    with_as_long,
    with_plain,
    with_rivals,
    with_uniform,
)
from benchmarks.quality.measured import WORST_EXCESS, Measure, Setup
from benchmarks.quality.statistics import Estimate, compare, interval, smallest_p

_README_ARMS = ("standard", "uniform", "uniform-clip", "ama-r", "ama-s")
_README_TOTAL = ("uniform-total", "ama-r-total")
_MERGE = "best tuned merge"
_COIN = 0.5
_TITLES = {"generation": "worst generation", "accuracy": "worst accuracy"}


def specialists(setup: Setup) -> list[str]:
    """Whether each specialist beats the reference on its own task."""
    rows = []
    for arm in setup.arms("specialist"):
        task = arm.removeprefix("specialist-")
        loss = compared(setup, [(arm, "reference")], Measure("loss", "task", task))
        if not loss:
            continue
        accuracies = list(setup.values(arm, Measure("accuracy", "task", task)).values())
        coin = compare(accuracies, [_COIN] * len(accuracies), higher_is_better=True)
        cells = [f"`{task}`"]
        for paired, good in ((loss[0].paired, -1), (coin, 1)):
            verdict = "not resolved"
            if paired.difference.resolved:
                verdict = "resolved" if paired.difference.mean * good > 0 else "**resolved: worse**"
            cells += [shown.estimate(paired.difference, signed=True), shown.wins(paired), verdict]
        rows.append(cells)
    if not rows:
        return []
    return [
        "Each specialist on its own task: its loss minus the reference's, where less is good, and its accuracy",
        "minus one half, which a coin has (the reference's margins are all 0, so it has none); resolved if the",
        "interval excludes 0.",
        "",
        *shown.table(["task", "loss", "better", "", "accuracy", "better", ""], rows),
    ]


def arms(setup: Setup) -> list[str]:
    """Every arm's worst and mean numbers."""
    metrics = [WORST_EXCESS, Measure("excess"), Measure("accuracy", "worst"), Measure("accuracy")]
    if setup.has("generation"):
        metrics += [Measure("generation", "worst"), Measure("generation")]
    metrics += [Measure("margin"), Measure("drift")]
    rows = []
    for arm in setup.arms():
        cells = [
            _estimate(setup, arm, measure)
            if measure == WORST_EXCESS
            else shown.number(_mean(setup, arm, measure))
            for measure in metrics
        ]
        costs = [shown.count(setup.cost(arm, what)) for what in ("tokens", "seconds")]
        seeds = len(setup.values(arm, WORST_EXCESS))
        few = f" ({seeds} of {len(setup.seeds)} seeds)" if seeds < len(setup.seeds) else ""
        rows.append([f"`{arm}`{few}", *cells, *costs])
    titles = [f"{measure.over} {measure.metric}" for measure in metrics]
    return shown.table(["arm", *titles, "tokens", "seconds"], rows)


def against_uniform(setup: Setup) -> list[str]:
    """The paired comparisons with uniform mixing."""
    text = f"Each arm minus `{BASELINE}`, seed by seed; p corrected over the arms."
    return _paired(setup, text, with_uniform(setup, WORST_EXCESS), with_uniform(setup, second_measure(setup)))


def against_rivals(setup: Setup) -> list[str]:
    """The paired comparisons of AMA with the other ways."""
    text = "AMA minus what else could be done, seed by seed; p corrected over the rows."
    if merge := setup.best_tuned_merge():
        text += f" Of the tuned merges, `{merge}`\nis the best by these very numbers, which is in its favour."
    return _paired(setup, text, with_rivals(setup, WORST_EXCESS), with_rivals(setup, second_measure(setup)))


def against_as_long(setup: Setup) -> list[str]:
    """The paired comparisons of AMA-R with the others where all train for the specialists' steps as well."""
    text = (
        "AMA-R minus the others where all train for the steps of the specialists on top, which AMA-R\n"
        "needs as well; p corrected over the rows."
    )
    excess, second = (with_as_long(setup, measure) for measure in (WORST_EXCESS, second_measure(setup)))
    return _paired(setup, text, excess, second)


def against_plain(setup: Setup) -> list[str]:
    """The paired comparisons of AMA-R's options with AMA-R without them."""
    text = "AMA-R with an option, or without a part, minus AMA-R, seed by seed; p corrected over the rows."
    return _paired(setup, text, with_plain(setup, WORST_EXCESS), with_plain(setup, second_measure(setup)))


def _paired(setup: Setup, text: str, excess: Sequence[Comparison], second: Sequence[Comparison]) -> list[str]:
    if not excess:
        return []
    others = {(found.arm, found.baseline): found for found in second}
    title = _TITLES[second_measure(setup).metric]
    rows = []
    for found in excess:
        other = others.get((found.arm, found.baseline))
        name = f"`{found.arm}`" if found.baseline == BASELINE else f"`{found.arm}` - `{found.baseline}`"
        rows.append([name, *_comparison(found), *(_comparison(other) if other else [""] * 3)])
    head = [
        "arm",
        "difference of worst excess (< 0 is good)",
        "better in",
        "p",
        f"of {title} (> 0 is good)",
        "better in",
        "p",
    ]
    seeds = max(found.paired.seeds for found in excess)
    least = smallest_p(seeds)
    return [
        text,
        f"With {shown.seeds(seeds)} no p can be below {shown.p_value(least)} before the correction, nor the "
        f"smallest of these {len(excess)} below {shown.p_value(min(1.0, len(excess) * least))} after it.",
        "",
        *shown.table(head, rows),
    ]


def _comparison(found: Comparison) -> list[str]:
    difference = shown.estimate(found.paired.difference, signed=True)
    return [difference, shown.wins(found.paired), shown.p_value(found.corrected)]


def tuned(setup: Setup) -> list[str]:
    """What was tried for each arm, and what was chosen."""
    if not setup.tuned:
        return []
    chosen, tried = [], []
    for arm, found in setup.tuned.items():
        candidates = sorted(found["tried"], key=lambda each: float(each["worst_excess"]))
        chosen.append([f"`{arm}`", str(len(candidates)), shown.options(found["chosen"])])
        for each in candidates:
            mark = "yes" if each["options"] == found["chosen"] else ""
            tried.append([f"`{arm}`", shown.options(each["options"]), shown.number(each["worst_excess"]), mark])
    seeds = ", ".join(str(seed) for seed in setup.tuning_seeds)
    shared = len(set(setup.seeds) & set(setup.tuning_seeds))
    return [
        f"Tuned for the least mean worst excess on the validation split, seeds {seeds};",
        f"{shared or 'none'} of them among the seeds of the other tables.",
        "",
        *shown.table(["arm", "tried", "chosen"], chosen),
        *shown.folded(
            "Every candidate's mean worst excess on the validation split",
            shown.table(["arm", "options", "worst excess", "chosen"], tried),
        ),
    ]


def late(setup: Setup) -> list[str]:
    """What the mixers did in the last quarter of the training: means over the seeds."""
    rows = []
    for arm in setup.arms("generalist"):
        found = [row.late for row in setup.rows if row.arm == arm and row.late]
        for quantity in ("weight", "pairs", "excess") if found else ():
            means = [sum(late[task][quantity] for late in found) / len(found) for task in setup.tasks]
            rows.append([f"`{arm}`", quantity, *(shown.number(mean) for mean in means)])
    if not rows:
        return []
    table = shown.table(["arm", "a step's", *(f"`{task}`" for task in setup.tasks)], rows)
    return shown.folded(
        "Task weights, pairs a step and training excess in the last quarter of the steps", table
    )


def task_by_task(setup: Setup) -> list[str]:
    """The main arms' means on each task."""
    lines = []
    for metric in ("excess", "accuracy", "generation"):
        tasks = [task for task in setup.tasks if any(metric in row.tasks.get(task, {}) for row in setup.rows)]
        if not tasks:
            continue
        rows = [
            [f"`{arm}`", *(shown.number(_mean(setup, arm, Measure(metric, "task", task))) for task in tasks)]
            for arm in (*setup.arms("reference", "specialist"), *setup.main_arms())
        ]
        lines += shown.table([metric, *(f"`{task}`" for task in tasks)], rows)
    return shown.folded("Task by task, means over the seeds", lines) if lines else []


def readme_table(setups: Sequence[Setup]) -> str:
    """Worst excess of the main arms on every setup, as one Markdown table; what is absent is left out."""
    rows = []
    for arm in (*_README_ARMS, _MERGE, *_README_TOTAL):
        cells = []
        for setup in setups:
            name = setup.best_tuned_merge() if arm == _MERGE else arm
            cell = _estimate(setup, name, WORST_EXCESS) if name else ""
            cells.append(f"{cell} `{name}`" if cell and arm == _MERGE else cell)
        if any(cells):
            rows.append([arm if arm == _MERGE else f"`{arm}`", *cells])
    head = ["worst excess", *(f"{setup.name} ({shown.seeds(len(setup.measured_seeds))})" for setup in setups)]
    return "\n".join(shown.table(head, rows))


def _found(setup: Setup, arm: str, measure: Measure) -> Estimate | None:
    values = setup.values(arm, measure)
    return interval(list(values.values())) if values else None


def _estimate(setup: Setup, arm: str, measure: Measure) -> str:
    found = _found(setup, arm, measure)
    return "" if found is None else shown.estimate(found)


def _mean(setup: Setup, arm: str, measure: Measure) -> float | None:
    values = setup.values(arm, measure)
    return sum(values.values()) / len(values) if values else None
