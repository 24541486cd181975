"""The life of one stage of the DAG, in the process that runs it.

`run_step` announces the stage, checks its inputs, gives it a log file and a share of the processors, seals its
outputs, and delivers its MLflow record. Code below it reports through `current_step()`.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, TypeVar

from automixalign.steps import artifacts
from automixalign.steps.artifacts import Artifact
from automixalign.steps.events import EventLog, log_name, stage_title
from automixalign.steps.output import output_to
from automixalign.steps.tracking.delivery import deliver
from automixalign.steps.tracking.record import RECORD_FILE, Record
from automixalign.storage import files
from automixalign.system import orphans, shortages
from automixalign.system.errors import AutoMixAlignError, StorageError
from automixalign.system.messages import logger, print_messages
from automixalign.system.processors import limit_threads, respect_container_limit

WORKERS_VARIABLE = "AMA_LOCAL_WORKERS"
"""Names how many stages of a loop run at a time on this machine."""
_REPORT_SECONDS = 0.5
_T = TypeVar("_T")


class Step:
    """A stage that is running, or a part of it in another process.

    Args:
        stage: the node of the DAG.
        name: which one of a loop's stages this is; empty outside a loop.
    """

    def __init__(self, stage: str, name: str) -> None:
        self.stage, self.name = stage, name
        self.title = stage_title(stage, name)
        self.events = EventLog(stage, name)
        self.record = Record(stage=stage, name=name)
        self._reported = 0.0
        self._before, self._whole = 0, 0

    def report(self, done: int, total: int, **facts: float) -> None:
        """Report progress, at most twice a second; a total of 0 is unknown."""
        now = time.monotonic()
        if done == total or now - self._reported >= _REPORT_SECONDS:
            self._reported = now
            self.events.write("progress", done=done, total=total, **facts)

    def warn(self, message: str) -> None:
        """Tell the user about a problem that does not stop the stage."""
        logger.warning("%s", message)
        self.events.write("warning", message=message)

    def track(self, items: Iterable[_T], total: int, work: Iterable[float] | None = None) -> Iterator[_T]:
        """Yield the items, and report each one as done.

        Args:
            items: what to do.
            total: how much work they are.
            work: of each item; by default 1.
        """
        done = 0.0
        for item, each in zip(items, repeat(1.0) if work is None else work, strict=False):
            yield item
            done += each
            self.report(self._before + round(done), self._whole or total)
        self._before += total if self._whole else 0

    @contextmanager
    def whole(self, total: int) -> Iterator[None]:
        """Report what each `track` inside counts as parts of one whole.

        Args:
            total: how much work all of them are, in their unit.
        """
        self._whole = total
        try:
            yield
        finally:
            self._before = self._whole = 0


_current: ContextVar[Step] = ContextVar("current_step")


def current_step() -> Step:
    """The stage that runs in this context; outside `run_step`, one without a name.

    A new thread starts with an empty context: call its function through `contextvars.copy_context().run`.
    """
    return _current.get(None) or Step("", "")


class _Collecting(Step):
    def __init__(self) -> None:
        super().__init__("", "")
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@contextmanager
def collect_warnings() -> Iterator[list[str]]:
    """Collect the warnings of the context in a list; an error prints them at once."""
    step = _Collecting()
    token = _current.set(step)
    try:
        yield step.warnings
    except BaseException:
        for warning in step.warnings:
            logger.warning("%s", warning)
        raise
    finally:
        _current.reset(token)


def adopt_step(stage: str, name: str) -> None:
    """Take part in a stage that another process of this machine runs."""
    print_messages()
    _current.set(Step(stage, name))


@contextmanager
def run_step(
    stage: str, name: str = "", reads: Iterable[Artifact] = (), writes: Iterable[Artifact] = ()
) -> Iterator[Step]:
    """Run a stage of the DAG.

    Args:
        stage: the node of the DAG.
        name: which one of a loop's stages this is. `AMA_LOCAL_WORKERS` of them share the processors.
        reads: the artifacts that the stage reads; their digests are checked first.
        writes: the artifacts that it makes; they get digests when it succeeds.

    Raises:
        CacheError: an input has changed since it was made.
        StorageError: a disk is full.
        ResourceError: memory ran out.
    """
    orphans.end_with_lock_holder()
    print_messages()
    step, outputs = Step(stage, name), list(writes)
    token = _current.set(step)
    try:
        if workers := os.environ.get(WORKERS_VARIABLE):
            limit_threads(int(workers) if name else 1)
        else:
            respect_container_limit()
        with shortages.name_shortages(step.title, stage):
            started = time.monotonic()
            step.events.write("started", process=os.getpid(), oom_kills=shortages.count_oom_kills())
            with _log_file(step):
                try:
                    with shortages.name_shortages(step.title, stage):
                        artifacts.verify(reads)
                        yield step
                        artifacts.seal(outputs)
                        _deliver_record(step, "FINISHED")
                except BaseException as error:
                    _report_failure(step, error)
                    raise
                if step.events.folder is not None and outputs:
                    folder = Path(outputs[0].path).parent
                    files.write_text(folder / RECORD_FILE, step.record.model_dump_json())
            step.events.write("finished", seconds=round(time.monotonic() - started, 2))
    finally:
        _current.reset(token)


def _deliver_record(step: Step, status: Literal["FINISHED", "FAILED"]) -> None:
    if warning := deliver(step.record, status):
        step.warn(warning)


def _log_file(step: Step) -> Any:
    folder = step.events.folder
    return nullcontext() if folder is None else output_to(folder / log_name(step.stage, step.name))


def _message(error: BaseException) -> str:
    """What is wrong; only an error that nobody foresaw needs its class."""
    return str(error) if isinstance(error, AutoMixAlignError) else f"{type(error).__name__}: {error}"


def _report_failure(step: Step, error: BaseException) -> None:
    """Report an error wherever that is possible; a full disk must not replace it by another error."""
    reports: list[Callable[[], Any]] = [
        lambda: step.events.write("failed", error=_message(error)),
        lambda: logger.error("%s failed", step.title, exc_info=error),
        lambda: _deliver_record(step, "FAILED"),
    ]
    for report in reports:
        try:
            report()
        except (OSError, StorageError) as failure:
            error.add_note(f"it could not be reported: {failure}")
