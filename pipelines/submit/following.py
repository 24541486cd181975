"""Follow a run on the server, and report its tasks as the events that `pipelines.local.display` shows."""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, NamedTuple, get_args

from kfp_server_api import V2beta1PipelineTaskDetail, V2beta1Run

from automixalign.config.cluster import Stage
from automixalign.steps.events import stage_title
from automixalign.system.errors import AutoMixAlignError
from pipelines.submit.server import Server, ServerError

MAX_FAILURES = 8
"""How many requests in a row may fail before the following stops."""
MAX_WAIT_SECONDS = 60.0
_ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
_EVENTS = {"SUCCEEDED": "finished", "FAILED": "failed"}
_DRIVER = "-driver"
_FIRST_YEAR = 1971
"""The server reports a time that is not known as one before this year."""


class FollowingError(AutoMixAlignError):
    """The run cannot be followed any longer; it continues on the server."""


class Outcome(NamedTuple):
    """How a run ended."""

    state: str
    message: str
    """The server's message, often empty."""
    failed: list[tuple[str, str]]
    """Title and server message of each failed stage; up to KFP 2.17 the message is empty."""

    @property
    def succeeded(self) -> bool:
        """Whether every stage succeeded."""
        return self.state == "SUCCEEDED"


def follow(server: Server, run_id: str, show: Callable[[list[dict[str, Any]]], None], poll: float) -> Outcome:
    """Request the state of a run until the run ends.

    Args:
        server: has the run.
        run_id: the run.
        show: called with the new events after every request.
        poll: seconds between two requests. The wait doubles after each failed request.

    Raises:
        FollowingError: the server no longer returns the run.
    """
    tasks, failures = Tasks(), 0
    while True:
        try:
            run = server.run(run_id)
        except ServerError as error:
            failures += 1
            if failures == MAX_FAILURES or not error.is_temporary:
                message = f"{error}\nthe run itself continues; open it at {server.link(run_id)}"
                raise FollowingError(message) from error
            if failures == 1:
                show([_warning(f"{error}; retrying")])
            time.sleep(min(poll * 2**failures, MAX_WAIT_SECONDS))
            continue
        failures = 0
        show(list(tasks.changes(run)))
        if run.state in _ENDED:
            return Outcome(run.state, _message(run), tasks.failed(run))
        time.sleep(poll)


class Tasks:
    """The known states of a run's tasks.

    The server reports neither the loop iteration of a task nor its inputs. Tasks with the same name are
    therefore numbered in the order of their start.
    """

    def __init__(self) -> None:
        self._run_state = ""
        self._states: dict[str, str] = {}
        self._numbers: dict[str, int] = {}
        self._counts: Counter[str] = Counter()

    def changes(self, run: V2beta1Run) -> Iterator[dict[str, Any]]:
        """The events since the last call."""
        if run.state != self._run_state and run.state in ("CANCELING", "PAUSED"):
            yield _warning(f"the run is {run.state}")
        self._run_state = run.state
        for stage, task in _stage_tasks(run):
            before = self._states.get(task.task_id)
            if task.state != before and task.state in ("RUNNING", *_EVENTS):
                self._states[task.task_id] = task.state
                yield from self._change(stage, task, before)

    def failed(self, run: V2beta1Run) -> list[tuple[str, str]]:
        """Title and server message of each failed stage."""
        return [
            (stage_title(stage, self._number(stage, task)), _message(task))
            for stage, task in _stage_tasks(run)
            if task.state == "FAILED"
        ]

    def _change(
        self, stage: str, task: V2beta1PipelineTaskDetail, before: str | None
    ) -> Iterator[dict[str, Any]]:
        event = {"stage": stage, "name": self._number(stage, task)}
        start = _time(task.start_time) or time.time()
        if before != "RUNNING":
            yield {**event, "event": "started", "time": start}
        if task.state in _EVENTS:
            end = _time(task.end_time) or time.time()
            yield {**event, "event": _EVENTS[task.state], "time": max(end, start)}

    def _number(self, stage: str, task: V2beta1PipelineTaskDetail) -> str:
        if task.task_id not in self._numbers:
            self._counts[stage] += 1
            self._numbers[task.task_id] = self._counts[stage]
        number = self._numbers[task.task_id]
        return str(number) if number > 1 else ""


def _stage_tasks(run: V2beta1Run) -> list[tuple[str, V2beta1PipelineTaskDetail]]:
    """The tasks that are stages of the DAG, in the order of their start."""
    tasks = (run.run_details.task_details if run.run_details else None) or []
    tasks = sorted(tasks, key=lambda task: _time(task.start_time) or float("inf"))
    return [(stage, task) for task in tasks if (stage := _stage(task))]


def _stage(task: V2beta1PipelineTaskDetail) -> str | None:
    """The stage of a task; None for tasks that the server adds: loops, pods, the whole pipeline.

    Up to KFP 2.17 a task has its key in the DAG as name (`train-specialist`). The display name works, too.
    A stage's driver prepares its pod. It is shown only if it fails, because the stage then never starts.
    """
    name = re.sub(r"[ _]", "-", str(task.display_name).lower())
    stage = re.sub(r"-\d+$", "", name.removesuffix(_DRIVER)).replace("-", "_")
    if name.endswith(_DRIVER):
        return f"{stage}{_DRIVER}" if task.state == "FAILED" else None
    return stage if stage in get_args(Stage) else None


def _message(answer: V2beta1Run | V2beta1PipelineTaskDetail) -> str:
    return (answer.error.message if answer.error else None) or ""


def _time(moment: datetime | None) -> float | None:
    return moment.timestamp() if moment is not None and moment.year >= _FIRST_YEAR else None


def _warning(message: str) -> dict[str, Any]:
    return {"stage": "", "name": "", "event": "warning", "message": message}
