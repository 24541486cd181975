"""The state of a run folder: running, ended or damaged."""

import fcntl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from automixalign.report import leaderboard, run_folder, run_models
from automixalign.report.leaderboard import Entry
from automixalign.steps.events import EVENTS_FILE, parse_events
from automixalign.storage import files
from automixalign.system.errors import AutoMixAlignError, ConfigError
from pipelines.local.watching.stages import Stages

RunStateName: TypeAlias = Literal["running", "finished", "failed", "interrupted", "damaged"]


@dataclass(frozen=True)
class RunState:
    """What a run folder tells of its run."""

    folder: Path
    state: RunStateName
    stages: Stages
    events: list[dict[str, Any]]
    entries: list[Entry]
    """Of the leaderboard; empty without one."""
    note: str = ""
    """The process that runs it, or what is damaged."""

    @property
    def started(self) -> float | None:
        """When the first event of the first attempt was; None without events."""
        return self.events[0]["time"] if self.events else None

    @property
    def ended(self) -> float | None:
        """When the last event was."""
        return self.events[-1]["time"] if self.events else None

    @property
    def chosen(self) -> tuple[str, float] | None:
        """The model that the run registered or chose, and its gap on the worst task of the test split."""
        if not self.entries:
            return None
        name = run_models.best_model(self.folder)
        return name, next(entry["worst"]["gap"] for entry in self.entries if entry["model"] == name)


def is_run_folder(folder: Path) -> bool:
    """Whether a run has begun in a folder, or its results were copied there."""
    return run_folder.is_begun(folder) or (folder / run_folder.CONFIG).is_file()


def read_state(folder: Path) -> RunState:
    """Read what a run folder tells; a part that cannot be read makes it `damaged`.

    Raises:
        ConfigError: it is not a run folder.
    """
    if not is_run_folder(folder):
        problem = "does not exist" if not folder.exists() else "is not a run folder"
        raise ConfigError(f"{folder} {problem}; `ama runs` lists the run folders below ./runs")
    path = folder / run_folder.LOGS / EVENTS_FILE
    events: list[dict[str, Any]] = []
    entries: list[Entry] = []
    stages = Stages()
    try:
        events = parse_events(path.read_bytes()) if path.is_file() else []
        stages = Stages(events)
        path = folder / run_folder.LEADERBOARD
        entries = files.read_json(path) if path.is_file() else []
        if entries:
            leaderboard.conclusions(entries)
    except (AutoMixAlignError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        note = f"{path} cannot be read: {type(error).__name__}: {error}"
        return RunState(folder, "damaged", stages, events, [], note)
    if not (folder / run_folder.CONFIG).is_file():
        return RunState(folder, "damaged", stages, events, entries, f"there is no {run_folder.CONFIG}")
    if process := _process(folder):
        return RunState(folder, "running", stages, events, entries, process)
    compared = stages.get(("compare", ""))
    state: RunStateName
    if any(stage.state == "failed" for stage in stages.values()):
        state = "failed"
    elif entries and not stages.running and (compared is None) == (not events):
        state = "finished"
    else:
        state = "interrupted"
    return RunState(folder, state, stages, events, entries)


def _process(folder: Path) -> str:
    """The process that holds the lock of a run folder; empty if none does."""
    path = folder / run_folder.WORK / run_folder.LOCK
    try:
        with path.open(encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # until the file is closed at once
            except BlockingIOError:
                return lock.read().strip() or "a process that has just begun"
    except OSError:  # no lock file, or a file system without locks
        pass
    return ""
