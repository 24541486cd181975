"""All facts on the page of one run, read from what its stages wrote."""

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from automixalign import __version__
from automixalign.config.experiment import ComparisonSettings
from automixalign.config.file import dump_yaml
from automixalign.data.store import read_card
from automixalign.report import leaderboard
from automixalign.report.facts.curves import curves, validation_curves
from automixalign.report.facts.data_facts import data_facts, memorisation_warnings
from automixalign.report.facts.examples import MAX_CHARACTERS, examples
from automixalign.report.facts.grids import grids
from automixalign.report.facts.limits import limits
from automixalign.report.leaderboard import Entry
from automixalign.scoring.metrics.registry import registered_metrics
from automixalign.steps.artifacts import Artifact
from automixalign.storage import files
from automixalign.system.provenance import git_commit, versions

_PACKAGES = ("python", "torch", "transformers", "trl", "peft", "mergekit", "kfp")
_COSTS = (
    "steps",
    "pairs",
    "tokens",
    "seconds",
    "trained_parameters",
    "validation_seconds",
    "kept_step",
    "machine",
)


@dataclass(frozen=True, kw_only=True)
class RunResults:
    """What the stages of a run wrote.

    Args:
        evaluations: a folder for each model, in any order.
        trajectories: generalist or specialist -> its per-step log.
        costs: generalist or specialist -> what its training returned.
        data: the prepared splits, with their card.
        losses: the specialists' caches, one for each task, in any order.
        tunings: merge -> the search of its weights (`merging/tuning.py`).
        benchmarks: a folder for each model that solved benchmarks, in any order.
    """

    evaluations: Sequence[Path]
    trajectories: Mapping[str, Path]
    costs: Mapping[str, Mapping[str, Any]]
    data: Path
    losses: Sequence[Path]
    tunings: Mapping[str, Any] = field(default_factory=dict)
    benchmarks: Sequence[Path] = ()

    @classmethod
    def of_artifacts(
        cls,
        evaluations: Iterable[Artifact],
        logs: Iterable[Artifact],
        data: Artifact,
        losses: Iterable[Artifact],
        benchmarks: Iterable[Artifact],
    ) -> Self:
        """The results in the artifacts of the stages; names, costs and tunings are in the metadata."""
        trainings = {log.metadata["model"]: log for log in logs}
        return cls(
            evaluations=[Path(artifact.path) for artifact in evaluations],
            trajectories={name: Path(log.path) for name, log in trainings.items()},
            costs={name: log.metadata for name, log in trainings.items()},
            data=Path(data.path),
            losses=[Path(artifact.path) for artifact in losses],
            tunings={
                each.metadata["model"]: each.metadata["tuning"]
                for each in evaluations
                if "tuning" in each.metadata
            },
            benchmarks=[Path(artifact.path) for artifact in benchmarks],
        )


def collect(settings: ComparisonSettings, entries: list[Entry], results: RunResults) -> dict[str, Any]:
    """The facts of a finished run, as JSON.

    Args:
        settings: of the stage `compare`.
        entries: the leaderboard.
        results: what the stages wrote.
    """
    experiment = settings.experiment
    rows = {name: files.read_jsonl(path) for name, path in results.trajectories.items()}
    card = read_card(results.data)
    tasks = data_facts(experiment, rows, card, results.losses)
    trained = [entry["model"] for entry in entries if entry["model"] in rows]
    return {
        "kind": "run",
        "name": experiment.name,
        "seed": experiment.seed,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "base_model": {"source": experiment.base_model.source, "revision": experiment.base_model.revision},
        "verdict": "\n".join(leaderboard.conclusions(entries)),
        "metrics": {name: metric.facts() for name, metric in registered_metrics().items()},
        "ranked_by": leaderboard.RANKED_BY,
        "baseline": leaderboard.baseline(entries),
        "leaderboard": entries,
        "grids": grids(experiment, entries),
        "best": {
            f"{view}.{metric}": leaderboard.best(entries, view, metric)
            for view, metric in leaderboard.columns(entries)
        },
        "trainings": {name: curves(rows[name]) for name in trained},
        "validations": {
            name: validated
            for name in trained
            if (validated := validation_curves(rows[name], results.costs.get(name, {})))
        },
        "tasks": tasks,
        "examples": examples([task["name"] for task in tasks], entries, results.evaluations, results.data),
        "max_characters": MAX_CHARACTERS,
        "long_answers": card["long_answers"],
        "warnings": [*card["warnings"], *memorisation_warnings(experiment, tasks)],
        "costs": {
            name: {key: results.costs[name][key] for key in _COSTS if key in results.costs[name]}
            for name in trained
            if results.costs.get(name, {}).keys() & set(_COSTS)
        },
        "tunings": results.tunings,
        "stages": None,
        "cards": [],
        "config": dump_yaml(experiment),
        "versions": {"automixalign": __version__, **{name: versions()[name] for name in _PACKAGES}},
        "library": settings.code,
        "commit": git_commit(),
        "limits": limits(experiment, results.costs, tasks),
    }
