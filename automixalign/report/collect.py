"""Everything the page of one run shows, gathered from what its steps left."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from automixalign.config.experiment import ComparisonSettings
from automixalign.config.file import dump_yaml
from automixalign.report import leaderboard
from automixalign.report.curves import curves
from automixalign.report.data_facts import data_facts, gap_warnings
from automixalign.report.leaderboard import Entry
from automixalign.report.limits import accuracy_errors, limits
from automixalign.report.versions import versions
from automixalign.scoring.metrics import BETTER
from automixalign.storage import files

CARD = "card.json"

_COSTS = ("steps", "pairs", "tokens", "seconds", "trained_parameters")


def collect(
    settings: ComparisonSettings,
    entries: list[Entry],
    trajectories: Mapping[str, Path],
    data: Path,
    losses: Iterable[Path],
    costs: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The facts of a finished run, as JSON.

    Args:
        entries: the leaderboard.
        trajectories: generalist or specialist -> its per-step log.
        data: the prepared splits, of which the card is read.
        losses: the specialists' caches, one a task, in any order.
        costs: generalist or specialist -> what its training returned.
    """
    experiment = settings.experiment
    rows = {name: files.read_jsonl(path) for name, path in trajectories.items()}
    tasks = data_facts(experiment, rows, data / CARD, losses)
    ordered = [entry["model"] for entry in entries if entry["model"] in rows]
    return {
        "kind": "run",
        "name": experiment.name,
        "seed": experiment.seed,
        "verdict": leaderboard.verdict(entries),
        "metrics": BETTER,
        "leaderboard": entries,
        "best": {
            f"{view}.{metric}": leaderboard.best(entries, view, metric)
            for view in ("worst", "average")
            for metric in BETTER
        },
        "trainings": {name: curves(rows[name]) for name in ordered},
        "tasks": tasks,
        "warnings": gap_warnings(experiment, tasks),
        "costs": {
            name: {key: costs[name][key] for key in _COSTS if key in costs[name]}
            for name in ordered
            if costs.get(name, {}).keys() & set(_COSTS)
        },
        "stages": None,
        "config": dump_yaml(experiment),
        "versions": versions(),
        "library": settings.code,
        "limits": limits(experiment, costs, tasks),
        "accuracy_errors": accuracy_errors(tasks, entries),
    }
