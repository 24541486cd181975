"""The stages of a run, as its events tell them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

StageKey: TypeAlias = tuple[str, str]
"""The node of the DAG, and the name of one of a loop's stages; the name is empty outside a loop."""
State: TypeAlias = Literal["running", "finished", "cached", "failed"]

_FIRST, _LAST = "validate_config", ("compare", "register", "publish")


@dataclass
class Stage:
    """One stage of a run."""

    started: float
    """Seconds since 1970, as every time here."""
    state: State = "running"
    ended: float | None = None
    done: int = 0
    total: int = 0
    """Of its progress; 0 if it is unknown."""
    reported: float = 0.0
    """When it last reported progress."""
    begun: tuple[float, int] = (0.0, 0)
    """When the progress to `total` began, and what was done then."""
    loss: float | None = None
    error: str = ""

    @property
    def is_done(self) -> bool:
        """Whether its result is there."""
        return self.state in ("finished", "cached")

    @property
    def seconds(self) -> float | None:
        """How long it took; None if it still runs, or its result came from the cache."""
        return None if self.ended is None or self.state == "cached" else self.ended - self.started

    @property
    def seconds_each(self) -> float | None:
        """Seconds for one of what `done` counts, since the first report; None before the second report."""
        time, done = self.begun
        return max(self.reported - time, 1e-3) / (self.done - done) if self.done > done else None

    def time_left(self, now: float) -> float | None:
        """Seconds until its progress is complete; None if its speed or its total is unknown."""
        if not self.total or self.seconds_each is None:
            return None
        return max(self.reported + (self.total - self.done) * self.seconds_each - now, 0.0)


class Stages(dict[StageKey, Stage]):
    """Stage -> what its events told, in the order in which the stages began; those that have begun."""

    def __init__(self, events: Iterable[dict[str, Any]] = ()) -> None:
        super().__init__()
        for event in events:
            self.add(event)

    def add(self, event: dict[str, Any]) -> Stage | None:
        """Take in one event.

        Returns:
            The stage that the event is about, if it says that the stage ended.
        """
        key, kind = (event["stage"], event["name"]), event["event"]
        if kind == "started":
            if key[0] == _FIRST:
                self._begin_attempt()
            self.pop(key, None)
            self[key] = Stage(event["time"])
        elif kind == "progress" and key in self:
            self._progress(self[key], event)
        elif kind in ("finished", "failed", "cached"):
            if kind == "cached" and key[0] == _FIRST:
                self._begin_attempt()
            stage = self.setdefault(key, Stage(event["time"]))
            if kind == "cached" and stage.state == "finished":
                return stage  # an earlier attempt made it, and its seconds stay known
            stage.state, stage.ended, stage.error = kind, event["time"], event.get("error", "")
            return stage
        return None

    def _begin_attempt(self) -> None:
        """Forget what an earlier attempt left unfinished, and the stages that every attempt ends with."""
        for key in [key for key, stage in self.items() if not stage.is_done or key[0] in _LAST]:
            del self[key]

    def _progress(self, stage: Stage, event: dict[str, Any]) -> None:
        if event["total"] != stage.total or event["done"] < stage.done:
            stage.begun = event["time"], event["done"]
        stage.done, stage.total, stage.reported = event["done"], event["total"], event["time"]
        stage.loss = event.get("loss", stage.loss)

    @property
    def running(self) -> dict[StageKey, Stage]:
        """The stages that have begun and not ended."""
        return {key: stage for key, stage in self.items() if stage.state == "running"}

    @property
    def done(self) -> int:
        """The number of stages whose result is there."""
        return sum(stage.is_done for stage in self.values())
