"""The grids of a run: the points of each, and which of them is chosen on the validation split."""

from collections.abc import Sequence
from typing import Any

from automixalign.config.experiment import Experiment
from automixalign.config.methods import MethodSpec
from automixalign.data.store import VALIDATION
from automixalign.report.leaderboard import Entry, chosen
from automixalign.system.flatten import flatten

_NAMES = {"method", "name", "of_grid"}


def grids(experiment: Experiment, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The grids of an experiment.

    Args:
        experiment: with the points as methods.
        entries: the leaderboard, with a validation split.

    Returns:
        For each grid its `name`, the `keys` in which its points differ, the `points`, and the name of the
        `chosen` point. A point has its `model`, its `values` of the keys, and its gap on the worst task of the
        `validation` and of the `test` split.
    """
    boards = {entry["model"]: entry for entry in entries}
    names = dict.fromkeys(method.of_grid for method in experiment.methods if method.of_grid)
    return [
        _grid(name, [method for method in experiment.methods if method.of_grid == name], boards)
        for name in names
    ]


def _grid(name: str, methods: Sequence[MethodSpec], boards: dict[str, Entry]) -> dict[str, Any]:
    settings = {each.name: dict(flatten(each.model_dump(exclude=_NAMES))) for each in methods}
    keys = dict.fromkeys(key for values in settings.values() for key in values)
    entries = [boards[each.name] for each in methods]
    selected = chosen(entries)
    return {
        "name": name,
        "keys": [key for key in keys if len({repr(values.get(key)) for values in settings.values()}) > 1],
        "chosen": selected and selected["model"],
        "points": [
            {
                "model": entry["model"],
                "values": settings[entry["model"]],
                "validation": entry[VALIDATION]["worst"]["gap"],
                "test": entry["worst"]["gap"],
            }
            for entry in entries
        ],
    }
