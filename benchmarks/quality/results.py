"""Reads the committed results of the benchmark, and compares arms with each other seed by seed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from automixalign.config.training import specialist_name
from automixalign.storage import files
from benchmarks.quality.statistics import Paired, compare, holm

BASELINE = "uniform"
AMA = ("ama-r", "ama-s")
TOTAL = "-total"
"""Ends the name of an arm that trains for the specialists' steps as well."""
FAMILIES = ("reference", "specialist", "generalist", "merge")
HIGHER_IS_BETTER = ("accuracy", "margin", "pass_rate")
_FIRST_ARMS = ("standard", "uniform", "uniform-clip", *AMA)
_LAST_ARMS = ("uniform-total", "standard-total", "ama-r-total")

MAP_METHODS = ("uniform", "ama-r")
FULL = "full"
"""The map's rank of a training without adapters."""

Values = dict[int, float]
"""Seed -> value."""


class Row(NamedTuple):
    """One arm on one seed."""

    seed: int
    arm: str
    family: str
    tasks: Mapping[str, Mapping[str, float]]
    """Task -> metric -> value on the test split."""
    seconds: float | None
    tokens: int | None
    steps: int | None
    late: Mapping[str, Mapping[str, float]] = {}
    """Task -> mean `weight`, `pairs` a step and `excess` a pair over the last quarter of a training."""


class Measure(NamedTuple):
    """A metric of one task, of the worst task, or averaged over tasks."""

    metric: str
    over: str = "mean"
    """`mean`, `worst` or `task`."""
    task: str = ""

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value is better."""
        return self.metric in HIGHER_IS_BETTER

    def of(self, row: Row) -> float | None:
        """The value of a row; None where no task has the metric."""
        if self.over == "task":
            return row.tasks.get(self.task, {}).get(self.metric)
        values = [metrics[self.metric] for metrics in row.tasks.values() if self.metric in metrics]
        if not values:
            return None
        if self.over == "worst":
            return min(values) if self.higher_is_better else max(values)
        return sum(values) / len(values)


WORST_GAP, WORST_EXCESS = Measure("gap", "worst"), Measure("excess", "worst")
"""The first ranks the arms. The second is the objective of AMA; it favours arms that train on it."""


@dataclass(frozen=True)
class SetupResults:
    """The results file of one setup."""

    name: str
    command: str
    seeds: Sequence[int]
    tuning_seeds: Sequence[int]
    tuned: Mapping[str, Mapping[str, Any]]
    """Arm -> `chosen` options and all that were `tried`, each with `options` and `worst_excess`."""
    rows: Sequence[Row]

    @classmethod
    def read(cls, file: Path) -> "SetupResults":
        """Read a results file.

        Raises:
            ValueError: the file lacks a key, names an unknown family, or has two rows of an arm and seed.
        """
        return cls.of(files.read_json(file), str(file))

    @classmethod
    def of(cls, content: Mapping[str, Any], file: str) -> "SetupResults":
        """The content of a results file, which messages name; see `read`."""
        keys = ("setup", "command", "seeds", "tuning_seeds", "tuned", "rows")
        if missing := [key for key in keys if key not in content]:
            raise ValueError(f"{file} holds no results of a setup: it lacks {', '.join(missing)}")
        rows = _with_gaps(
            [Row(**{key: row[key] for key in Row._fields if key in row}) for row in content["rows"]]
        )
        known = set()
        for row in rows:
            if row.family not in FAMILIES:
                raise ValueError(f"{file}: family {row.family!r} of {row.arm} is none of {', '.join(FAMILIES)}")
            if (row.seed, row.arm) in known:
                raise ValueError(f"{file}: seed {row.seed} has two rows of {row.arm}")
            known.add((row.seed, row.arm))
        return cls(name=content["setup"], rows=rows, **{key: content[key] for key in keys[1:-1]})

    @property
    def measured_seeds(self) -> list[int]:
        """The seeds that have rows: fewer than `seeds` while the experiment runs."""
        return list(dict.fromkeys(row.seed for row in self.rows))

    @property
    def tasks(self) -> list[str]:
        """The tasks, in the order of the file."""
        return list(dict.fromkeys(task for row in self.rows for task in row.tasks))

    def has(self, metric: str) -> bool:
        """Whether any row has the metric."""
        return any(metric in metrics for row in self.rows for metrics in row.tasks.values())

    def arms(self, *families: str) -> list[str]:
        """The arms of some families, or of all: first the main ones in the page's order, then the file's."""
        arms = dict.fromkeys(
            (FAMILIES.index(row.family), _rank(row.arm), row.arm)
            for row in self.rows
            if row.family in (families or FAMILIES)
        )
        return [arm for _, _, arm in sorted(arms, key=lambda arm: arm[:2])]

    def family(self, arm: str) -> str:
        """The family of an arm."""
        return next(row.family for row in self.rows if row.arm == arm)

    def values(self, arm: str, measure: Measure) -> Values:
        """The values of an arm, for the seeds that have one."""
        values = {row.seed: measure.of(row) for row in self.rows if row.arm == arm}
        return {seed: value for seed, value in values.items() if value is not None}

    def mean(self, arm: str, measure: Measure) -> float | None:
        """The mean of an arm's values over seeds."""
        return _mean(self.values(arm, measure).values())

    def cost(self, arm: str, what: str) -> float | None:
        """The mean of an arm's `seconds`, `tokens` or `steps` over seeds."""
        costs = [getattr(row, what) for row in self.rows if row.arm == arm]
        return _mean([cost for cost in costs if cost is not None])

    def best_tuned_merge(self) -> str | None:
        """The tuned merge with the lowest worst gap on the test split, which favours merges."""
        means = {arm: self.mean(arm, WORST_GAP) for arm in self.arms("merge") if arm.endswith("-tuned")}
        measured = {arm: mean for arm, mean in means.items() if mean is not None}
        return min(measured, key=lambda arm: measured[arm], default=None)

    def main_arms(self) -> list[str]:
        """The mixing methods, the best tuned merge and the arms of total compute that were measured."""
        arms = set(self.arms())
        return [arm for arm in (*_FIRST_ARMS, self.best_tuned_merge(), *_LAST_ARMS) if arm in arms]

    def second_measure(self) -> Measure:
        """The measure beside worst gap and excess: worst pass rate if measured, else worst accuracy."""
        return Measure("pass_rate" if self.has("pass_rate") else "accuracy", "worst")


def _with_gaps(rows: Sequence[Row]) -> list[Row]:
    """The rows with the metric `gap` of each task whose specialist has a row of the same seed."""
    specialists = {
        (row.seed, task): row.tasks[task]["loss"]
        for row in rows
        for task in row.tasks
        if row.arm == specialist_name(task)
    }
    return [
        row._replace(
            tasks={
                task: {"gap": metrics["loss"] - specialists[row.seed, task], **metrics}
                if (row.seed, task) in specialists
                else metrics
                for task, metrics in row.tasks.items()
            }
        )
        for row in rows
    ]


def _rank(arm: str) -> int:
    if arm in _FIRST_ARMS:
        return _FIRST_ARMS.index(arm)
    return len(_FIRST_ARMS) + (1 + _LAST_ARMS.index(arm) if arm in _LAST_ARMS else 0)


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None


class Comparison(NamedTuple):
    """An arm against a baseline."""

    arm: str
    baseline: str
    paired: Paired
    corrected: float
    """p by Holm's correction over all comparisons of one table."""


Pairs = list[tuple[str, str]]
"""(arm, baseline) each."""


def compared(results: SetupResults, pairs: Pairs, measure: Measure) -> list[Comparison]:
    """Compare pairs of arms over the seeds that both have; pairs without a common seed are left out."""
    found = {
        pair: paired
        for pair in pairs
        if (paired := _paired(*(results.values(arm, measure) for arm in pair), measure.higher_is_better))
    }
    corrected = holm({"\t".join(pair): paired.p for pair, paired in found.items()})
    return [Comparison(*pair, paired, corrected["\t".join(pair)]) for pair, paired in found.items()]


def _paired(mine: Values, theirs: Values, higher_is_better: bool) -> Paired | None:
    seeds = [seed for seed in mine if seed in theirs]
    if not seeds:
        return None
    values = ([each[seed] for seed in seeds] for each in (mine, theirs))
    return compare(*values, higher_is_better=higher_is_better)


def with_uniform(results: SetupResults) -> Pairs:
    """Every other generalist and merge against uniform mixing."""
    return [(arm, BASELINE) for arm in results.arms("generalist", "merge") if arm != BASELINE]


def with_rivals(results: SetupResults) -> Pairs:
    """AMA-R and AMA-S against the other mixing methods, total compute and the best tuned merge."""
    merge = results.best_tuned_merge()
    rivals = ("standard", "uniform-clip", "uniform-total", "standard-total", *([merge] if merge else []))
    return [(arm, rival) for arm in AMA for rival in rivals]


def at_total_compute(_results: SetupResults) -> Pairs:
    """AMA-R with the specialists' steps on top against the other arms that have them."""
    return [(AMA[0] + TOTAL, rival + TOTAL) for rival in ("standard", BASELINE)]


def with_plain_ama_r(results: SetupResults) -> Pairs:
    """Each variant of AMA-R against AMA-R as published."""
    names = results.arms("generalist")
    return [(arm, AMA[0]) for arm in names if arm.startswith(f"{AMA[0]}-") and not arm.endswith(TOTAL)]


Selection = Callable[[SetupResults], Pairs]


class Cell(NamedTuple):
    """A point of the capacity map."""

    tasks: int
    rank: int | str
    steps: int


@dataclass(frozen=True)
class CapacityMap:
    """AMA-R and uniform mixing by number of tasks, capacity and steps (`map.json`)."""

    command: str
    seeds: Sequence[int]
    values: Mapping[Cell, Mapping[str, Mapping[int, Mapping[str, float]]]]
    """Cell -> method -> seed -> metric -> value."""

    @classmethod
    def read(cls, file: Path) -> "CapacityMap":
        """Read a map.

        Raises:
            ValueError: a method is unknown, or a cell has two rows of a method and seed.
        """
        content = files.read_json(file)
        values: dict[Cell, dict[str, dict[int, dict[str, float]]]] = {}
        for row in content["rows"]:
            cell, method, seed = Cell(row["tasks"], row["rank"], row["steps"]), row["method"], row["seed"]
            if method not in MAP_METHODS:
                raise ValueError(f"{file}: method {method!r} is none of {', '.join(MAP_METHODS)}")
            of_method = values.setdefault(cell, {}).setdefault(method, {})
            if seed in of_method:
                raise ValueError(f"{file}: seed {seed} has two rows of {method} at {cell}")
            measured = (key for key in row if key.startswith("worst_") and row[key] is not None)
            of_method[seed] = {key: row[key] for key in measured}
        return cls(content["command"], content["seeds"], values)

    def axis(self, name: str) -> list[Any]:
        """The values of `tasks`, `rank` or `steps` in ascending order; full rank comes last."""
        return sorted({getattr(cell, name) for cell in self.values}, key=lambda value: (value == FULL, value))

    def _seeds(self, cell: Cell, method: str, metric: str) -> Values:
        rows = self.values.get(cell, {}).get(method, {})
        return {seed: metrics[metric] for seed, metrics in rows.items() if metric in metrics}

    def paired(self, cell: Cell, metric: str) -> Paired | None:
        """AMA-R against uniform mixing over the seeds that both have."""
        uniform, ama = (self._seeds(cell, method, metric) for method in MAP_METHODS)
        return _paired(ama, uniform, metric.endswith(HIGHER_IS_BETTER))

    def worst_metrics(self) -> list[str]:
        """The measured metrics of the worst task."""
        rows = (row for methods in self.values.values() for rows in methods.values() for row in rows.values())
        return list(dict.fromkeys(metric for row in rows for metric in row if metric.startswith("worst")))
