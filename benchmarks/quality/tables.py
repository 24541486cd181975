"""Makes the Markdown tables of the page from results."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.quality.results import (
    AMA,
    BASELINE,
    TOTAL,
    WORST_EXCESS,
    WORST_GAP,
    Comparison,
    Measure,
    Pairs,
    SetupResults,
    at_total_compute,
    compared,
    with_plain_ama_r,
    with_rivals,
    with_uniform,
)
from benchmarks.quality.statistics import Estimate, Paired, compare, interval, smallest_p

_DIGITS = 3
_BEST_MERGE = "best tuned merge"
_MAIN_ARMS = ("standard", "uniform", "uniform-clip", "ama-r", "ama-s")
_OVERVIEW = (*_MAIN_ARMS, _BEST_MERGE, "uniform-total", "standard-total", "ama-r-total")
_COIN_ACCURACY = 0.5


def number(value: float | None, signed: bool = False) -> str:
    """Three decimal places without a leading zero, as in .034; empty for None."""
    if value is None:
        return ""
    rounded = round(value, _DIGITS) + 0.0  # turns -0.0 into 0.0
    sign = "-" if rounded < 0 else "+" if signed and rounded > 0 else ""
    text = f"{abs(rounded):.{_DIGITS}f}"
    return sign + (text[1:] if text.startswith("0.") else text)


def estimate(value: Estimate, signed: bool = False) -> str:
    """A mean and its interval, as in .034 [.017, .053]."""
    ends = "" if value.low is None else f" [{number(value.low, signed)}, {number(value.high, signed)}]"
    return number(value.mean, signed) + ends


def p_value(p: float) -> str:
    """Three significant figures, as in .0625."""
    return f"{p:.3g}".removeprefix("0")


def wins(paired: Paired) -> str:
    """On how many seeds the arm is better, and on how many it is equal."""
    return f"{paired.wins} of {paired.seeds}" + (f", {paired.ties} equal" if paired.ties else "")


def seeds(count: int) -> str:
    """A number of seeds."""
    return f"{count} seed" if count == 1 else f"{count} seeds"


def _options(options: Mapping[str, Any]) -> str:
    values = ((name, f"{value:g}" if isinstance(value, float) else value) for name, value in options.items())
    return ", ".join(f"`{name}` {value}" for name, value in values) or "none"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table, and an empty line."""
    lines = [head, ["---"] * len(head), *rows]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def folded(title: str, lines: Sequence[str]) -> list[str]:
    """Lines that a click unfolds."""
    return ["<details>", f"<summary>{title}</summary>", "", *lines, "</details>", ""]


def overview(setups: Sequence[SetupResults], measure: Measure = WORST_GAP) -> str:
    """A measure of the main arms on every setup, as one table (README has that of the worst gap, too)."""
    rows = []
    for name in _OVERVIEW:
        cells = []
        for setup in setups:
            arm = setup.best_tuned_merge() if name == _BEST_MERGE else name
            cell = mean_and_interval(setup, arm, measure) if arm else ""
            cells.append(f"{cell} `{arm}`" if cell and name == _BEST_MERGE else cell)
        if any(cells):
            rows.append([name if name == _BEST_MERGE else f"`{name}`", *cells])
    head = [
        f"worst {measure.metric}",
        *(f"{setup.name} ({seeds(len(setup.measured_seeds))})" for setup in setups),
    ]
    return "\n".join(table(head, rows)).rstrip()


def summary(setups: Sequence[SetupResults]) -> list[str]:
    """AMA against uniform mixing, at equal steps and at total compute; one row a comparison."""
    rows = []
    for setup in setups:
        measured = [
            {
                each[:2]: each
                for pairs in (with_uniform, with_rivals, at_total_compute)
                for each in compared(setup, pairs(setup), measure)
            }
            for measure in (WORST_GAP, WORST_EXCESS)
        ]
        shown = [(arm, BASELINE) for arm in AMA]
        shown += [(arm, BASELINE + TOTAL) for arm in (*AMA, AMA[0] + TOTAL)]
        rows += [
            [
                f"`{setup.name}`",
                f"`{pair[0]}` - `{pair[1]}`",
                *itertools.chain(*(_comparison(each.get(pair)) for each in measured)),
            ]
            for pair in shown
            if pair in measured[0]
        ]
    head = itertools.chain(_head(WORST_GAP), _head(WORST_EXCESS))
    return table(["setup", "arms", *head], rows) if rows else []


def specialists(setup: SetupResults) -> list[str]:
    """Whether each specialist beats the reference model on its own task."""
    rows = []
    for arm in setup.arms("specialist"):
        task = arm.removeprefix("specialist-")
        loss = compared(setup, [(arm, "reference")], Measure("loss", "task", task))
        if not loss:
            continue
        accuracies = list(setup.values(arm, Measure("accuracy", "task", task)).values())
        coin = compare(accuracies, [_COIN_ACCURACY] * len(accuracies), higher_is_better=True)
        cells = [f"`{task}`"]
        for paired, better_sign in ((loss[0].paired, -1), (coin, 1)):
            verdict = "not resolved"
            if paired.difference.resolved:
                better = paired.difference.mean * better_sign > 0
                verdict = "resolved" if better else "**resolved: worse**"
            cells += [estimate(paired.difference, signed=True), wins(paired), verdict]
        rows.append(cells)
    if not rows:
        return []
    return [
        "Specialists on their own task: loss minus the reference model's loss, and accuracy minus one half.",
        "",
        *table(["task", "loss", "better on", "", "accuracy", "better on", ""], rows),
    ]


def arms(setup: SetupResults) -> list[str]:
    """The worst and mean metrics of every arm."""
    metrics = [
        Measure("gap"),
        WORST_EXCESS,
        Measure("excess"),
        Measure("accuracy", "worst"),
        Measure("accuracy"),
    ]
    if setup.has("pass_rate"):
        metrics += [Measure("pass_rate", "worst"), Measure("pass_rate")]
    metrics += [Measure("margin"), Measure("drift")]
    rows = []
    for arm in setup.arms():
        costs = [setup.cost(arm, what) for what in ("tokens", "seconds")]
        count = len(setup.values(arm, WORST_GAP))
        few = f" ({count} of {len(setup.seeds)} seeds)" if count < len(setup.seeds) else ""
        rows.append(
            [
                f"`{arm}`{few}",
                mean_and_interval(setup, arm, WORST_GAP),
                *(number(setup.mean(arm, measure)) for measure in metrics),
                *("" if cost is None else f"{cost:,.0f}" for cost in costs),
            ]
        )
    titles = [f"{measure.over} {measure.metric}".replace("_", " ") for measure in (WORST_GAP, *metrics)]
    return table(["arm", *titles, "tokens", "seconds"], rows)


def comparisons(setup: SetupResults) -> list[str]:
    """Every paired comparison of the setup, in four tables."""
    rivals = "AMA minus the other methods."
    if merge := setup.best_tuned_merge():
        rivals += f" `{merge}` is the best of the tuned merges on the test split, which favours merges."
    return [
        *against(setup, f"Each arm minus `{BASELINE}`.", with_uniform(setup)),
        *against(setup, rivals, with_rivals(setup)),
        *against(setup, "AMA-R at total compute minus the others at total compute.", at_total_compute(setup)),
        *against(setup, "Variants of AMA-R minus AMA-R.", with_plain_ama_r(setup)),
    ]


def against(setup: SetupResults, text: str, pairs: Pairs) -> list[str]:
    """One table of paired comparisons: worst gap, worst excess, and the setup's second measure."""
    measures = (WORST_GAP, WORST_EXCESS, setup.second_measure())
    gaps, *others = (compared(setup, pairs, measure) for measure in measures)
    if not gaps:
        return []
    by_pair = [{each[:2]: each for each in measured} for measured in others]
    rows = []
    for each in gaps:
        name = f"`{each.arm}`" if each.baseline == BASELINE else f"`{each.arm}` - `{each.baseline}`"
        cells = [_comparison(each), *(_comparison(measured.get(each[:2])) for measured in by_pair)]
        rows.append([name, *itertools.chain(*cells)])
    count = max(each.paired.seeds for each in gaps)
    least = smallest_p(count)
    return [
        f"{text} The smallest possible p of {seeds(count)} is {p_value(least)} before the correction and "
        f"{p_value(min(1.0, len(gaps) * least))} after it.",
        "",
        *table(["arm", *itertools.chain(*map(_head, measures))], rows),
    ]


def _head(measure: Measure) -> list[str]:
    good = ">" if measure.higher_is_better else "<"
    return [f"{measure.over} {measure.metric.replace('_', ' ')} ({good} 0 is good)", "better on", "p"]


def _comparison(comparison: Comparison | None) -> list[str]:
    if comparison is None:
        return [""] * 3
    paired = comparison.paired
    return [estimate(paired.difference, signed=True), wins(paired), p_value(comparison.corrected)]


def tuned(setup: SetupResults) -> list[str]:
    """The options that were tried for each arm and chosen, the best candidate first."""
    if not setup.tuned:
        return []
    rows = []
    for arm, tuning in setup.tuned.items():
        tried = sorted(tuning["tried"], key=lambda candidate: float(candidate["worst_excess"]))
        texts = [f"{_options(each['options'])}: {number(each['worst_excess'])}" for each in tried]
        rows.append([f"`{arm}`", _options(tuning["chosen"]), str(len(tried)), "; ".join(texts)])
    tuning_seeds = ", ".join(map(str, setup.tuning_seeds))
    shared = len(set(setup.seeds) & set(setup.tuning_seeds)) or "none"
    title = f"Tuning: mean worst excess of every candidate on the validation split, seeds {tuning_seeds}"
    return folded(
        f"{title} ({shared} of them reported above)", table(["arm", "chosen", "tried", "candidates"], rows)
    )


def task_by_task(setup: SetupResults) -> list[str]:
    """The means of the main arms on each task, one row an arm."""
    metrics = [metric for metric in ("gap", "excess", "accuracy", "pass_rate") if setup.has(metric)]
    rows = []
    for arm in (*setup.arms("reference", "specialist"), *setup.main_arms()):
        cells = []
        for task in setup.tasks:
            means = [number(setup.mean(arm, Measure(metric, "task", task))) for metric in metrics]
            cells.append(" / ".join(filter(None, means)))
        rows.append([f"`{arm}`", *cells])
    head = ["arm", *(f"`{task}`" for task in setup.tasks)]
    title = f"Task by task: {' / '.join(metrics)}".replace("_", " ")
    return folded(title, table(head, rows)) if metrics else []


def late(setup: SetupResults) -> list[str]:
    """What the mixers did in the last quarter of the training, one row an arm."""
    rows = []
    for arm in setup.arms("generalist"):
        logs = [row.late for row in setup.rows if row.arm == arm and row.late]
        cells = [
            " / ".join(
                number(sum(log[task][quantity] for log in logs) / len(logs))
                for quantity in ("weight", "pairs", "excess")
            )
            for task in (setup.tasks if logs else ())
        ]
        if cells:
            rows.append([f"`{arm}`", *cells])
    head = ["arm", *(f"`{task}`" for task in setup.tasks)]
    title = "Last quarter of the steps: task weight / pairs a step / training excess"
    return folded(title, table(head, rows)) if rows else []


def defaults(rows: Sequence[Mapping[str, Any]], options: Sequence[str]) -> list[str]:
    """The runs of `benchmarks.quality.defaults` that vary some options."""
    views = [key for key in rows[0] if key.startswith(("worst ", "average "))]
    cells = [
        [
            f"`{row['arm']}`",
            *(f"{row['options'][name]:g}" for name in options),
            *(number(row[view]) for view in views),
        ]
        for row in rows
        if options[0] in row["options"]
    ]
    return table(["arm", *options, *(view.replace("_", " ") for view in views)], cells)


def mean_and_interval(setup: SetupResults, arm: str, measure: Measure) -> str:
    """An arm's measure over its seeds, as text; empty if it has none."""
    values = setup.values(arm, measure)
    return estimate(interval(list(values.values()))) if values else ""
