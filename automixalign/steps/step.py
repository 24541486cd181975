"""What a step tells the outside while it works: events for the terminal, and a log of its own.

`ama run` names a folder in `AMA_LOGS`; there, each step appends to `events.jsonl` and writes all it prints to
`STAGE[-NAME].log`. Without it (in a container, on a cluster) a step prints to its own output as usual. What a
step tells MLflow is gathered in its `record` and kept or sent at its end (see `tracking`).
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from automixalign.steps import artifacts
from automixalign.steps.artifacts import Artifact
from automixalign.steps.tracking import spool
from automixalign.steps.tracking.record import Record
from automixalign.storage import files
from automixalign.system import alive, plain_text, shortages
from automixalign.system.errors import StorageError
from automixalign.system.plain_text import shown

LOGS_VARIABLE = "AMA_LOGS"
WORKERS_VARIABLE = "AMA_LOCAL_WORKERS"
EVENTS = "events.jsonl"
RECORD = "record.json"
"""What a step of a local run told MLflow, kept beside its outputs for whoever takes them from the cache."""
_INTERVAL = 0.5
_SENDING_SECONDS = 60
"""A step that sends its record itself begins no other one after so long."""
_T = TypeVar("_T")


class Step:
    """A running step of the DAG; the last one started is the current one."""

    def __init__(self, stage: str, name: str) -> None:
        self.stage, self.name = stage, name
        folder = os.environ.get(LOGS_VARIABLE)
        self.events = Path(folder) / EVENTS if folder else None
        self.record = Record(stage=stage, name=name)
        self._last = 0.0
        self._torn = False
        """The last event may have been cut short by a full disk."""

    def emit(self, event: str, **facts: Any) -> None:
        """Append one event; a line this short is appended whole, also by several processes."""
        if self.events is None:
            return
        facts = {key: shown(value) if isinstance(value, str) else value for key, value in facts.items()}
        row = {"time": time.time(), "stage": self.stage, "name": self.name, "event": event, **facts}
        line = f"{json.dumps(row)}\n"
        torn, self._torn = self._torn, True
        with self.events.open("a", encoding="utf-8") as out:
            out.write(f"\n{line}" if torn else line)
        self._torn = False

    def report(self, done: int, total: int, **facts: float) -> None:
        """Tell how far the step is, at most twice a second."""
        now = time.monotonic()
        if done == total or now - self._last >= _INTERVAL:
            self._last = now
            self.emit("progress", done=done, total=total, **facts)

    def warn(self, message: str) -> None:
        """Tell something that the user should know of, and go on."""
        print(f"warning: {shown(message)}", file=sys.stderr)  # noqa: T201
        self.emit("warning", message=message)

    def track(self, items: Iterable[_T], total: int) -> Iterator[_T]:
        """Yield the items, reporting each as done."""
        for number, item in enumerate(items, start=1):
            yield item
            self.report(number, total)


def events_in(text: bytes) -> list[dict[str, Any]]:
    """The events of a log; a line that a full disk cut short is passed over."""
    found = []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


_current = Step("", "")


def current_step() -> Step:
    """The step this process runs."""
    return _current


def adopt_step(running: Step) -> None:
    """Take part in a step that another process of this machine runs."""
    global _current  # noqa: PLW0603  one process runs one step
    _current = running


@contextmanager
def run_step(
    stage: str, name: str = "", reads: Iterable[Artifact] = (), writes: Iterable[Artifact] = ()
) -> Iterator[Step]:
    """Run a step of the DAG: announce it, log it, and share the processors with its siblings.

    A step with a name is one of several that a loop runs side by side. `AMA_LOCAL_WORKERS` tells how many
    run at a time on this machine; each then takes its part of the processors.

    Args:
        reads: the artifacts it is made from, which must be as they were made.
        writes: those it makes, which get their digests when it has ended well.

    Raises:
        CacheError: an input has changed since it was made.
    """
    global _current  # noqa: PLW0603  one process runs one step
    alive.depend()
    _current = running = Step(stage, name)
    outputs = list(writes)
    if workers := os.environ.get(WORKERS_VARIABLE):
        _share_processors(int(workers) if name else 1)
    with shortages.of_step(running.record.title, stage):
        started = time.monotonic()
        running.emit("started", process=os.getpid(), killed_for_memory=shortages.killed_for_memory())
        with _own_log(running):
            try:
                with shortages.of_step(running.record.title, stage):
                    artifacts.verify(reads)
                    yield running
                    artifacts.seal(outputs)
                    _keep_record(running, "FINISHED")
            except BaseException as error:
                _tell_failure(running, error)
                raise
            if running.events is not None and outputs:
                beside = Path(outputs[0].path).parent
                files.write_text(beside / RECORD, running.record.model_dump_json())
        running.emit("finished", seconds=round(time.monotonic() - started, 2))


def _tell_failure(running: Step, error: BaseException) -> None:
    """Tell of an error wherever there is room for it: a full disk must not put another in its place."""
    tellings: list[Callable[[], None]] = [
        lambda: running.emit("failed", error=f"{type(error).__name__}: {error}"),
        lambda: print(plain_text.of_exception(error), file=sys.stderr),  # noqa: T201
        lambda: _keep_record(running, "FAILED"),
    ]
    for tell in tellings:
        try:
            tell()
        except (OSError, StorageError) as trouble:
            error.add_note(f"it could not be written down: {trouble}")


def _keep_record(running: Step, status: Literal["FINISHED", "FAILED"]) -> None:
    """Leave the step's record to whoever sends for all, or send it; a server that is away fails no step."""
    waiting = spool.of_environment()
    if waiting is None:
        return
    running.record.ended, running.record.status = time.time(), status
    waiting.add(running.record)
    if spool.FOLLOWED not in os.environ:
        from automixalign.steps.tracking.send import send_waiting

        if left := send_waiting(waiting, _SENDING_SECONDS):
            running.warn(f"MLflow did not take the step's record ({left}); it waits in {waiting.folder}")


def log_name(stage: str, name: str) -> str:
    """The file, in the logs folder, that a step writes to."""
    return "-".join(part for part in (stage, name) if part) + ".log"


def _share_processors(workers: int) -> None:
    """Give this step its part of the processors, whether or not torch is imported already."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, count // workers)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


@contextmanager
def _own_log(running: Step) -> Iterator[None]:
    """Send all output of this process, and of native code in it, to the step's log."""
    if running.events is None:
        yield
        return
    path = running.events.parent / log_name(running.stage, running.name)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    kept = os.dup(1), os.dup(2)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, descriptor in enumerate(kept, start=1):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(log)
