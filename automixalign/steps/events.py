"""The event log of a run: one JSON line for each thing that a stage reports.

`ama run` names a folder in `AMA_LOGS`. Each stage appends its events to `events.jsonl` there, and writes its
output to a log file of its own. Without `AMA_LOGS` (in a container, on a cluster) a stage reports no events.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from automixalign.system.plain_text import printable

LOGS_VARIABLE = "AMA_LOGS"
EVENTS_FILE = "events.jsonl"


def stage_title(stage: str, name: str) -> str:
    """`train_specialist [helpful]`."""
    return f"{stage} [{name}]" if name else stage


def log_name(stage: str, name: str) -> str:
    """The name of a stage's log file in the logs folder."""
    return "-".join(part for part in (stage, name) if part) + ".log"


class EventLog:
    """Appends the events of one stage to the run's event log.

    Args:
        stage: the node of the DAG.
        name: which one of a loop's stages this is; empty outside a loop.
        folder: of the log; by default the one that `AMA_LOGS` names.
    """

    def __init__(self, stage: str, name: str, folder: Path | None = None) -> None:
        self.stage, self.name, self.folder = stage, name, folder
        if folder is None and LOGS_VARIABLE in os.environ:
            self.folder = Path(os.environ[LOGS_VARIABLE])
        self._line_may_be_cut = False

    def write(self, event: str, **facts: Any) -> None:
        """Append one event. One short write is atomic, also when several processes append.

        Raises:
            OSError: the disk is full. The next event then begins on a new line.
        """
        if self.folder is None:
            return
        facts = {key: printable(value) if isinstance(value, str) else value for key, value in facts.items()}
        row = {"time": time.time(), "stage": self.stage, "name": self.name, "event": event, **facts}
        line = f"{json.dumps(row)}\n"
        if self._line_may_be_cut:
            line = f"\n{line}"
        self._line_may_be_cut = True
        with (self.folder / EVENTS_FILE).open("a", encoding="utf-8") as out:
            out.write(line)
        self._line_may_be_cut = False


def parse_events(text: bytes) -> list[dict[str, Any]]:
    """The events of a log, without the lines that a full disk cut short."""
    events = []
    for line in text.splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events
