"""A finished run folder, read again: for a new page of it, or to compare it with others."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automixalign.config.experiment import ComparisonSettings, Experiment, parse_experiment
from automixalign.config.file import read_yaml
from automixalign.config.training import specialist_name
from automixalign.report import page, run_folder
from automixalign.report.collect import collect
from automixalign.report.leaderboard import Entry
from automixalign.report.run_folder import LEADERBOARD
from automixalign.steps.events import EVENTS_FILE, parse_events
from automixalign.storage import files
from automixalign.system.errors import ConfigError

REPORT = "report"
PAGE, FACTS = f"{REPORT}/index.html", f"{REPORT}/data.json"

_KEPT = ("versions", "library")


@dataclass(frozen=True)
class Run:
    """A finished run: where it lies, what it was told, and its leaderboard."""

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

    def kept(self) -> dict[str, Any]:
        """The facts of the page that the run itself wrote; none if it wrote no page."""
        path = self.folder / FACTS
        facts: dict[str, Any] = files.read_json(path) if path.is_file() else {}
        return facts


def rebuild(folder: Path, costs: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write `report/` of a finished run again, with what its logs add: seconds of each step, and warnings.

    Args:
        costs: generalist or specialist -> what its training returned, as far as it is known; what an earlier
            page of the run knew is kept.

    Returns:
        The page.

    Raises:
        ConfigError: `folder` is not the folder of a finished run, or a part of it is missing.
    """
    run = Run.read(folder)
    experiment, kept = run.experiment, run.kept()
    tasks = [task.name for task in experiment.tasks]
    names = [*map(specialist_name, tasks), *(method.name for method in experiment.methods)]
    try:
        data = collect(
            ComparisonSettings(seed=experiment.seed, experiment=experiment),
            run.entries,
            {name: folder / "trajectories" / f"{name}.jsonl" for name in names},
            folder / "data",
            [folder / "specialist_losses" / task for task in tasks],
            {**kept.get("costs", {}), **costs},
        )
    except FileNotFoundError as error:
        raise ConfigError(f"{folder} is not whole: there is no {error.filename}") from error
    # Software may have changed since; what the run itself noted is what made it.
    data |= {key: kept.get(key) for key in _KEPT}
    events = folder / run_folder.LOGS / EVENTS_FILE
    if events.is_file():
        data |= _logged(parse_events(events.read_bytes()), data["warnings"])
    page.write(data, folder / PAGE, folder / FACTS)
    return folder / PAGE


def _logged(events: list[dict[str, Any]], warnings: list[str]) -> dict[str, Any]:
    """What the steps' events say: how long each took, and what it warned of."""
    # A run that was ended and went on has done some steps twice.
    took = {(e["stage"], e["name"]): e["seconds"] for e in events if e["event"] == "finished"}
    stages = [{"stage": stage, "name": name, "seconds": seconds} for (stage, name), seconds in took.items()]
    logged = list(dict.fromkeys(event["message"] for event in events if event["event"] == "warning"))
    return {"stages": stages or None, "warnings": logged or warnings}
