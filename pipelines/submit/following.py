"""A run's tasks as they change, in the events that `pipelines.local.display` shows."""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, NamedTuple, get_args

import kfp_server_api as api

from automixalign.config.cluster import Stage
from automixalign.steps.events import stage_title
from automixalign.system.errors import AutoMixAlignError
from pipelines.submit.server import Server, ServerError

TRIES = 8
"""So many times in a row a run is looked at in vain, before it is given up."""
LONGEST_WAIT = 60.0
_ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
_EVENTS = {"SUCCEEDED": "finished", "FAILED": "failed"}
_DRIVER = "-driver"
_UNSET = 1971
"""A server's time before this year stands for none."""


class LostSightError(AutoMixAlignError):
    """The run goes on, but it cannot be followed."""


class Outcome(NamedTuple):
    """How a run ended."""

    state: str
    message: str
    """What the server says of it, often nothing."""
    failed: list[tuple[str, str]]
    """The steps that failed, each with what the server says of it: nothing, up to KFP 2.17."""

    @property
    def succeeded(self) -> bool:
        """Whether every step did its work."""
        return self.state == "SUCCEEDED"


def follow(server: Server, run_id: str, show: Callable[[list[dict[str, Any]]], None], poll: float) -> Outcome:
    """Look at a run until it has ended.

    Args:
        server: has the run.
        run_id: the run.
        show: is called with the new events after every look.
        poll: seconds between two looks; after one in vain, twice as long as before.

    Raises:
        LostSightError: the server does not show the run any more.
    """
    tasks, failures = Tasks(), 0
    while True:
        try:
            run = server.run(run_id)
        except ServerError as error:
            failures += 1
            if failures == TRIES or not error.may_pass:
                message = f"{error}\nthe run itself goes on; look at it there: {server.link(run_id)}"
                raise LostSightError(message) from error
            if failures == 1:
                show([_warning(f"{error}; trying again")])
            time.sleep(min(poll * 2**failures, LONGEST_WAIT))
            continue
        failures = 0
        show(list(tasks.changes(run)))
        if run.state in _ENDED:
            return Outcome(run.state, _message(run), tasks.failed(run))
        time.sleep(poll)


class Tasks:
    """What is known of a run's tasks.

    The server says neither which iteration of a loop a task belongs to nor what it works on, so tasks of one
    name are numbered as they start.
    """

    def __init__(self) -> None:
        self._run_state = ""
        self._states: dict[str, str] = {}
        self._numbers: dict[str, int] = {}
        self._seen: Counter[str] = Counter()

    def changes(self, run: api.V2beta1Run) -> Iterator[dict[str, Any]]:
        """The events since the last look."""
        if run.state != self._run_state and run.state in ("CANCELING", "PAUSED"):
            yield _warning(f"the run is {run.state}")
        self._run_state = run.state
        for step, task in _steps(run):
            before = self._states.get(task.task_id)
            if task.state != before and task.state in ("RUNNING", *_EVENTS):
                self._states[task.task_id] = task.state
                yield from self._change(step, task, before)

    def failed(self, run: api.V2beta1Run) -> list[tuple[str, str]]:
        """The steps that failed, as they were called in the events, each with what the server says of it."""
        return [
            (stage_title(step, self._number(step, task)), _message(task))
            for step, task in _steps(run)
            if task.state == "FAILED"
        ]

    def _change(
        self, step: str, task: api.V2beta1PipelineTaskDetail, before: str | None
    ) -> Iterator[dict[str, Any]]:
        event = {"stage": step, "name": self._number(step, task)}
        began = _time(task.start_time) or time.time()
        if before != "RUNNING":
            yield {**event, "event": "started", "time": began}
        if task.state in _EVENTS:
            ended = _time(task.end_time) or time.time()
            yield {**event, "event": _EVENTS[task.state], "time": max(ended, began)}

    def _number(self, step: str, task: api.V2beta1PipelineTaskDetail) -> str:
        if task.task_id not in self._numbers:
            self._seen[step] += 1
            self._numbers[task.task_id] = self._seen[step]
        number = self._numbers[task.task_id]
        return str(number) if number > 1 else ""


def _steps(run: api.V2beta1Run) -> list[tuple[str, api.V2beta1PipelineTaskDetail]]:
    """The tasks that are steps of the DAG, in the order in which they started."""
    tasks = (run.run_details.task_details if run.run_details else None) or []
    tasks = sorted(tasks, key=lambda task: _time(task.start_time) or float("inf"))
    return [(step, task) for task in tasks if (step := _step(task))]


def _step(task: api.V2beta1PipelineTaskDetail) -> str | None:
    """The step that a task is, None for what the server adds: loops, a step's pods, the whole.

    Up to KFP 2.17 it goes by its key in the DAG (`train-specialist`); its display name is understood, too.
    A step's driver prepares its pod; it is shown only where it fails, because the step then never starts.
    """
    name = re.sub(r"[ _]", "-", str(task.display_name).lower())
    step = re.sub(r"-\d+$", "", name.removesuffix(_DRIVER)).replace("-", "_")
    if name.endswith(_DRIVER):
        return f"{step}{_DRIVER}" if task.state == "FAILED" else None
    return step if step in get_args(Stage) else None


def _message(of: api.V2beta1Run | api.V2beta1PipelineTaskDetail) -> str:
    return (of.error.message if of.error else None) or ""


def _time(time_: datetime | None) -> float | None:
    return time_.timestamp() if time_ is not None and time_.year >= _UNSET else None


def _warning(message: str) -> dict[str, Any]:
    return {"stage": "", "name": "", "event": "warning", "message": message}
