"""AMA-R against uniform mixing by capacity, steps and number of tasks (`map.json`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from automixalign.storage import files
from benchmarks.quality import shown
from benchmarks.quality.statistics import Estimate, Paired, compare, interval

METHODS = ("uniform", "ama-r")
FULL = "full"
"""The rank of a training without adapters: everything is trained."""
_HIGHER_IS_BETTER = {
    "worst_excess": False,
    "mean_excess": False,
    "worst_generation": True,
    "mean_generation": True,
}
COMPARED = ("worst_excess", "worst_generation")
Rank = int | str


class Cell(NamedTuple):
    """A point of the map."""

    tasks: int
    rank: Rank
    steps: int


@dataclass(frozen=True)
class CapacityMap:
    """All of the map."""

    command: str
    seeds: Sequence[int]
    values: dict[Cell, dict[str, dict[int, dict[str, float]]]]
    """Cell -> method -> seed -> metric -> value."""

    @classmethod
    def read(cls, file: Path) -> "CapacityMap":
        """Read a file.

        Raises:
            ValueError: a method is unknown, or a cell has two rows of a method and seed.
        """
        found = files.read_json(file)
        values: dict[Cell, dict[str, dict[int, dict[str, float]]]] = {}
        for row in found["rows"]:
            cell, method, seed = Cell(row["tasks"], row["rank"], row["steps"]), row["method"], row["seed"]
            if method not in METHODS:
                raise ValueError(f"{file}: method {method!r} is none of {', '.join(METHODS)}")
            of_method = values.setdefault(cell, {}).setdefault(method, {})
            if seed in of_method:
                raise ValueError(f"{file}: seed {seed} has two rows of {method} at {cell}")
            of_method[seed] = {
                metric: row[metric] for metric in _HIGHER_IS_BETTER if row.get(metric) is not None
            }
        return cls(found["command"], found["seeds"], values)

    def axis(self, name: str) -> list[Any]:
        """The values of `tasks`, `rank` or `steps`, small ones first, the full rank last."""
        return sorted({getattr(cell, name) for cell in self.values}, key=_size)

    def paired(self, cell: Cell, metric: str) -> Paired | None:
        """AMA-R against uniform mixing over the seeds that both have."""
        of_cell = self.values.get(cell, {})
        uniform, ama = (
            {seed: found[metric] for seed, found in of_cell.get(method, {}).items() if metric in found}
            for method in METHODS
        )
        seeds = [seed for seed in uniform if seed in ama]
        if not seeds:
            return None
        mine, theirs = [ama[seed] for seed in seeds], [uniform[seed] for seed in seeds]
        return compare(mine, theirs, higher_is_better=_HIGHER_IS_BETTER[metric])

    def metrics(self) -> list[str]:
        """Which of the compared ones were measured."""
        return [metric for metric in COMPARED if any(self.paired(cell, metric) for cell in self.values)]

    def estimate(self, cell: Cell, method: str, metric: str) -> Estimate | None:
        """A method's own mean."""
        rows = self.values[cell].get(method, {}).values()
        values = [found[metric] for found in rows if metric in found]
        return interval(values) if values else None


def _size(value: Rank) -> tuple[bool, Rank]:
    return value == FULL, value


def lines(found: CapacityMap, plot: str) -> list[str]:
    """The map's section of the page, with a link to its plot."""
    head = ["tasks", "rank", "steps"]
    for metric in found.metrics():
        title = metric.replace("_", " ")
        head += [f"{title}: `uniform`", "`ama-r`", "`ama-r` - `uniform`", "better in"]
    means = [metric for metric in _HIGHER_IS_BETTER if metric.startswith("mean") and _measured(found, metric)]
    head += [f"{metric.replace('_', ' ')}: `uniform`, `ama-r`" for metric in means]
    rows = []
    for cell in sorted(found.values, key=lambda cell: (cell.tasks, _size(cell.rank), cell.steps)):
        cells = [str(part) for part in cell]
        for metric in found.metrics():
            cells += [_mean(found, cell, method, metric) for method in METHODS]
            paired = found.paired(cell, metric)
            cells += (
                [shown.estimate(paired.difference, signed=True), shown.wins(paired)] if paired else ["", ""]
            )
        cells += [", ".join(_mean(found, cell, method, metric) for method in METHODS) for metric in means]
        rows.append(cells)
    return [
        "## Where AMA-R differs from uniform mixing",
        "",
        f"`{found.command}`; {shown.seeds(len(found.seeds))}. Capacity is the rank of the adapters; `{FULL}`",
        "trains everything. A negative difference of excess and a positive one of generation are good; blue is",
        "where AMA-R is better, in every row of the plot. No p is given: so many cells of so few seeds are",
        "there to see a pattern, not to test one.",
        "",
        f"![AMA-R minus uniform by capacity, steps and tasks]({plot})",
        "",
        *shown.folded("Cell by cell", shown.table(head, rows)),
    ]


def _measured(found: CapacityMap, metric: str) -> bool:
    return any(found.estimate(cell, method, metric) for cell in found.values for method in METHODS)


def _mean(found: CapacityMap, cell: Cell, method: str, metric: str) -> str:
    estimate = found.estimate(cell, method, metric)
    return shown.number(estimate.mean) if estimate else ""
