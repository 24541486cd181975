"""What was measured: one setup's results as they lie in `SETUP.json`, and numbers of its arms seed by seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from automixalign.storage import files

HIGHER_IS_BETTER = ("accuracy", "margin", "generation")
FAMILIES = ("reference", "specialist", "generalist", "merge")
_FIRST = ("standard", "uniform", "uniform-clip", "ama-r", "ama-s")
_LAST = ("uniform-total", "standard-total", "ama-r-total")


class Row(NamedTuple):
    """One arm of one seed."""

    seed: int
    arm: str
    family: str
    tasks: Mapping[str, Mapping[str, float]]
    """Task -> metric -> value on the test split."""
    seconds: float | None
    tokens: int | None
    steps: int | None
    late: Mapping[str, Mapping[str, float]] = {}
    """Of a generalist by task, in the last quarter of its steps: `weight`, `pairs` a step, `excess` a pair."""


class Measure(NamedTuple):
    """One number of a row: a metric of one task, of the worst task, or the mean over tasks."""

    metric: str
    over: str = "mean"
    """`mean`, `worst`, or `task`."""
    task: str = ""

    @property
    def higher_is_better(self) -> bool:
        """Whether more of it is good."""
        return self.metric in HIGHER_IS_BETTER

    def of(self, row: Row) -> float | None:
        """The number; None where no task has the metric."""
        if self.over == "task":
            return row.tasks.get(self.task, {}).get(self.metric)
        values = [found[self.metric] for found in row.tasks.values() if self.metric in found]
        if not values:
            return None
        if self.over == "worst":
            return min(values) if self.higher_is_better else max(values)
        return sum(values) / len(values)


WORST_EXCESS = Measure("excess", "worst")


@dataclass(frozen=True)
class Setup:
    """One setup's results."""

    name: str
    command: str
    pilot: str
    seeds: Sequence[int]
    tuning_seeds: Sequence[int]
    tuned: Mapping[str, Mapping[str, Any]]
    """Arm -> `chosen` options, and what was `tried`: `options` and `worst_excess` each."""
    rows: Sequence[Row]

    @classmethod
    def read(cls, file: Path) -> "Setup":
        """Read a file.

        Raises:
            ValueError: it is none of these, a family is unknown, or an arm has two rows of one seed.
        """
        found = files.read_json(file)
        keys = ("setup", "command", "pilot", "seeds", "tuning_seeds", "tuned", "rows")
        missing = [key for key in keys if key not in found]
        if missing:
            raise ValueError(f"{file} holds no results of a setup: it lacks {', '.join(missing)}")
        fields = Row._fields[: -len(Row._field_defaults)]
        rows = [Row(*(each[field] for field in fields), each.get("late", {})) for each in found["rows"]]
        seen = set()
        for row in rows:
            if row.family not in FAMILIES:
                raise ValueError(f"{file}: family {row.family!r} of {row.arm} is none of {', '.join(FAMILIES)}")
            if (row.seed, row.arm) in seen:
                raise ValueError(f"{file}: seed {row.seed} has two rows of {row.arm}")
            seen.add((row.seed, row.arm))
        return cls(name=found["setup"], rows=rows, **{key: found[key] for key in keys[1:-1]})

    @property
    def measured_seeds(self) -> list[int]:
        """The seeds that have rows: fewer than `seeds` while the experiment runs."""
        return list(dict.fromkeys(row.seed for row in self.rows))

    @property
    def tasks(self) -> list[str]:
        """In the order of the file."""
        return list(dict.fromkeys(task for row in self.rows for task in row.tasks))

    def has(self, metric: str) -> bool:
        """Whether any task of any arm has the metric."""
        return any(metric in found for row in self.rows for found in row.tasks.values())

    def arms(self, *families: str) -> list[str]:
        """The arms of these families (of all without any): the named ones in the page's order."""
        arms = dict.fromkeys(
            (FAMILIES.index(row.family), _place(row.arm), row.arm)
            for row in self.rows
            if row.family in (families or FAMILIES)
        )
        return [arm for _, _, arm in sorted(arms, key=lambda arm: arm[:2])]

    def family(self, arm: str) -> str:
        """The family of an arm that there is."""
        return next(row.family for row in self.rows if row.arm == arm)

    def values(self, arm: str, measure: Measure) -> dict[int, float]:
        """Seed -> number, for the seeds that have it."""
        found = {row.seed: measure.of(row) for row in self.rows if row.arm == arm}
        return {seed: value for seed, value in found.items() if value is not None}

    def cost(self, arm: str, what: str) -> float | None:
        """The mean over seeds of `seconds`, `tokens` or `steps`."""
        values = [getattr(row, what) for row in self.rows if row.arm == arm and getattr(row, what) is not None]
        return sum(values) / len(values) if values else None

    def best_tuned_merge(self) -> str | None:
        """The tuned merge with the lowest mean worst excess on the test split, which is in its favour."""
        means = {}
        for arm in self.arms("merge"):
            if arm.endswith("-tuned") and (values := self.values(arm, WORST_EXCESS)):
                means[arm] = sum(values.values()) / len(values)
        return min(means, key=lambda arm: means[arm], default=None)

    def main_arms(self) -> list[str]:
        """The methods, the best tuned merge, and those with all the compute, as far as they are there."""
        names = (*_FIRST, self.best_tuned_merge(), *_LAST)
        arms = set(self.arms())
        return [name for name in names if name in arms]


def _place(arm: str) -> int:
    """Where an arm stands within its family: what has no place of its own keeps the file's order."""
    if arm in _FIRST:
        return _FIRST.index(arm)
    return len(_FIRST) + (1 + _LAST.index(arm) if arm in _LAST else 0)
