"""How a local run ended, read from the events of its stages.

kfp's status is not enough: kfp counts a stage as successful if its container disappears before kfp asks.
"""

import os
from pathlib import Path
from typing import Any

from automixalign.config.experiment import Experiment
from automixalign.steps.events import log_name, parse_events, stage_title
from automixalign.system import shortages
from automixalign.system.errors import AutoMixAlignError

KFP_LOG = "kfp.log"
_STATES = ("started", "finished", "failed", "cached")
_TAIL_LINES = 5


class StageFailedError(AutoMixAlignError):
    """A stage of the DAG failed.

    Args:
        stage: its title.
        reason: why it failed.
        log: its log.
        explained: whether it reported the reason itself.
        unreported: its node and name, if the events do not hold the failure.
    """

    def __init__(
        self,
        stage: str,
        reason: str,
        log: Path,
        explained: bool,
        unreported: tuple[str, str] | None = None,
    ) -> None:
        self.stage, self.reason, self.log, self.explained = stage, reason, log, explained
        self.unreported = unreported
        super().__init__(f"{stage}: {reason}")

    def tail(self) -> list[str]:
        """The last lines of the log of a stage that reported no reason."""
        return [] if self.explained else _lines(self.log)[-_TAIL_LINES:]


class EventReader:
    """Reads the events of a run while the stages append them.

    Args:
        path: the run's event log.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.events, self._offset = path, list[dict[str, Any]](), 0

    def skip_earlier_attempts(self) -> None:
        """Read no event that is there already, and remove a line that a power failure cut."""
        if self.path.exists():
            lines, newline, _ = self.path.read_bytes().rpartition(b"\n")
            self._offset = len(lines) + len(newline)
            os.truncate(self.path, self._offset)

    def read_new(self) -> list[dict[str, Any]]:
        """The events since the last call."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as stream:
            stream.seek(self._offset)
            lines = stream.read().rpartition(b"\n")[0]
        self._offset += len(lines) + bool(lines)
        new_events = parse_events(lines)
        self.events += new_events
        return new_events


def find_failure(
    experiment: Experiment, events: list[dict[str, Any]], status: int, logs: Path
) -> StageFailedError | None:
    """Find the stage that failed; None if the run succeeded.

    A stage that was killed reports nothing, but it has no event `finished`.

    Args:
        experiment: the checked configuration.
        events: all events of the attempt.
        status: exit status of the process that ran the DAG.
        logs: the run's log folder.
    """
    states: dict[tuple[str, str], dict[str, Any]] = {}
    for event in events:
        if event["event"] in _STATES:  # the last state counts: a stage can be retried
            key = event["stage"], event["name"]
            states.pop(key, None)
            states[key] = event
    for key, event in states.items():
        if event["event"] in ("started", "failed"):
            error = event.get("error")
            reason = error or _why_killed(event, logs)
            unreported = None if error else key
            return StageFailedError(
                stage_title(*key), reason, logs / log_name(*key), error is not None, unreported
            )
    if status:
        last_line = f": {lines[-1].strip()}" if (lines := _lines(logs / KFP_LOG)) else ""
        reason = f"the local runner failed{last_line}{_full_disk(logs)}"
        return StageFailedError("kfp", reason, logs / KFP_LOG, explained=True, unreported=("kfp", ""))
    last_stages = {"compare": True, "register": experiment.registry, "publish": experiment.output}
    for stage, is_configured in last_stages.items():  # no other stage would miss their results
        if is_configured and (stage, "") not in states:
            return StageFailedError(stage, "never started", logs / KFP_LOG, False, unreported=(stage, ""))
    return None


def _why_killed(started: dict[str, Any], logs: Path) -> str:
    """Guess why a stage stopped without a message.

    Args:
        started: the stage's event `started`.
        logs: the run's log folder.
    """
    before, now = started.get("oom_kills"), shortages.count_oom_kills()
    advice = shortages.memory_advice(started["stage"])
    if before is not None and now is not None and now > before:
        return f"was killed by the system because memory ran out; {advice}"
    if full_disk := _full_disk(logs):
        return f"ended without an error message{full_disk}"
    killed = "it was killed (SIGKILL), most often because memory ran out"
    return f"ended without an error message: {killed}; {advice}"


def _lines(log: Path) -> list[str]:
    """The lines of a log that are not empty."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return [line for line in text.splitlines() if line.strip()]


def _full_disk(logs: Path) -> str:
    if logs.exists() and shortages.is_nearly_full(logs):
        return f"; the disk of {logs} is full: free some space, or name a run folder on another disk"
    return ""
