"""Finished run folders: read one, or write its report again."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automixalign.config.experiment import ComparisonSettings, Experiment, parse_experiment
from automixalign.config.file import read_yaml
from automixalign.config.training import specialist_name
from automixalign.models.base_card import CARD
from automixalign.report import page, run_folder
from automixalign.report.facts.collect import RunResults, collect
from automixalign.report.leaderboard import Entry
from automixalign.report.run_folder import LEADERBOARD
from automixalign.report.run_models import MODELS
from automixalign.steps.events import EVENTS_FILE, parse_events
from automixalign.storage import files
from automixalign.system.errors import ConfigError

REPORT = "report"
PAGE, FACTS = f"{REPORT}/index.html", f"{REPORT}/data.json"


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, configuration and leaderboard."""

    folder: Path
    experiment: Experiment
    entries: list[Entry]

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """Read a run folder.

        Raises:
            ConfigError: it is not the folder of a finished run.
        """
        for name in (run_folder.CONFIG, LEADERBOARD):
            if not (folder / name).is_file():
                raise ConfigError(f"{folder} is not the folder of a finished run: there is no {name}")
        path = folder / run_folder.CONFIG
        experiment = parse_experiment(read_yaml(path), str(path))
        return cls(folder, experiment, files.read_json(folder / LEADERBOARD))

    def page_facts(self) -> dict[str, Any]:
        """The facts on the page that the run wrote; empty without a page."""
        path = self.folder / FACTS
        facts: dict[str, Any] = files.read_json(path) if path.is_file() else {}
        return facts


def rebuild(folder: Path, costs: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write `report/` of a finished run again, with what its logs add: seconds of each stage, and warnings.

    Args:
        folder: the run folder.
        costs: generalist or specialist -> what its training returned, if known. They replace the costs on an
            earlier page.

    Returns:
        The page.

    Raises:
        ConfigError: `folder` is not the folder of a finished run, or a part of it is missing.
    """
    run = Run.read(folder)
    experiment, old_facts = run.experiment, run.page_facts()
    tasks = [task.name for task in experiment.tasks]
    trained = [*map(specialist_name, tasks), *(method.name for method in experiment.methods)]
    results = RunResults(
        evaluations=[folder / "evaluations" / entry["model"] for entry in run.entries],
        trajectories={name: folder / "trajectories" / f"{name}.jsonl" for name in trained},
        costs={**old_facts.get("costs", {}), **costs},
        data=folder / "data",
        losses=[folder / "specialist_losses" / task for task in tasks],
        tunings=old_facts.get("tunings", {}),
    )
    settings = ComparisonSettings(seed=experiment.seed, experiment=experiment.without_delivery())
    try:
        facts = collect(settings, run.entries, results)
    except FileNotFoundError as error:
        raise ConfigError(f"{folder} is incomplete: there is no {error.filename}") from error
    # The software that made the run, not what is installed now.
    facts |= {key: old_facts.get(key) for key in ("date", "base_model", "versions", "library", "commit")}
    models = [entry["model"] for entry in run.entries]
    facts["cards"] = [name for name in models if (folder / MODELS / name / CARD).is_file()]
    events = folder / run_folder.LOGS / EVENTS_FILE
    if events.is_file():
        facts |= _event_facts(parse_events(events.read_bytes()), facts["warnings"])
    page.write(facts, folder / PAGE, folder / FACTS)
    return folder / PAGE


def _event_facts(events: list[dict[str, Any]], warnings: list[str]) -> dict[str, Any]:
    """The seconds of each stage in a run's event log, and its warnings after those that are known."""
    # The last event of a stage counts: a resumed run has run some stages twice.
    seconds = {(e["stage"], e["name"]): e["seconds"] for e in events if e["event"] == "finished"}
    stages = [{"stage": stage, "name": name, "seconds": value} for (stage, name), value in seconds.items()]
    logged = (event["message"] for event in events if event["event"] == "warning")
    return {"stages": stages or None, "warnings": list(dict.fromkeys([*warnings, *logged]))}
