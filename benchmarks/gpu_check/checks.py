"""The checks in the order in which they run, and the goals for their results."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks.gpu_check import adapters, kernels, saving, scoring, steps
from benchmarks.gpu_check.setting import Row, Setting
from benchmarks.speed import Goal


class Check(NamedTuple):
    """A check and the seconds that it gets of 15 minutes."""

    measure: Callable[[Setting], Iterator[Row]]
    seconds: int


CHECKS = {
    "machine": Check(steps.machine, 30),
    "speed": Check(steps.speed, 240),
    "first_loss": Check(steps.first_loss, 75),
    "nan_sweep": Check(kernels.nan_sweep, 120),
    "ama": Check(steps.ama, 90),
    "checkpoints": Check(saving.checkpoints, 90),
    "scoring": Check(scoring.scoring, 75),
    "kernels": Check(kernels.kernels, 60),
    "syncs": Check(steps.syncs, 60),
    "resume": Check(saving.resume, 60),
    "adapters": Check(adapters.adapters, 90),
}
"""The most important come first: the last ones do not run if the time is up."""

Results = Sequence[dict[str, Any]]
"""The fields of all rows, and the name of the `check`."""


def _values(results: Results, check: str, pattern: str) -> list[float]:
    """The numbers of a check whose names match."""
    rows = [row for row in results if row["check"] == check and re.search(pattern, row["what"])]
    return [row["value"] for row in rows if row["value"] is not None]


def _against_trl(results: Results, ours: str) -> float:
    return max(_values(results, "speed", ours)) / max(_values(results, "speed", "^trl[^:]*$"))


def _resumed(results: Results) -> float:
    if max(_values(results, "resume", "^two runs: weights")):
        raise ValueError("two runs differ, so a resumed one shows nothing")
    return max(_values(results, "resume", "^a resumed run: weights"))


GOALS = (
    Goal(
        *("speed", "tokens/s with sdpa, against TRL's fastest", ">=", 1.3),
        lambda results: _against_trl(results, "^ours, sdpa$"),
    ),
    Goal(
        *("speed", "tokens/s in our fastest way, against TRL's fastest", ">=", 1.3),
        lambda results: _against_trl(results, "^ours[^:]*$"),
    ),
    Goal(
        *("ama", "the slower step of AMA-R and AMA-S, against the standard step", "<=", 1.02),
        lambda results: max(_values(results, "ama", "/ standard$")),
    ),
    Goal(
        *("checkpoints", "share of the time", "<=", 0.03),
        lambda results: max(_values(results, "checkpoints", "^share")),
    ),
    Goal(
        *("scoring", "share of the rate of the forward passes alone, in the worst way", ">=", 0.7),
        lambda results: min(_values(results, "scoring", "alone$")),
    ),
    Goal(
        *("nan_sweep", "lengths with NaN, in the worst way", "<=", 0),
        lambda results: max(_values(results, "nan_sweep", "NaN$")),
    ),
    Goal(
        *("first_loss", "distance from ln 2, in the worst way", "<=", 1e-6),
        lambda results: max(_values(results, "first_loss", "of the step$")),
    ),
    Goal(
        *("resume", "weights that differ after a resume", "<=", 0),
        _resumed,
    ),
)


def judge(results: Results) -> list[dict[str, Any]]:
    """Each goal with its value: met, missed or unmeasured."""
    judged = []
    for goal in GOALS:
        try:
            value = goal.measure(results)
        except (ValueError, IndexError):  # a number is missing
            value = None
        verdict = "unmeasured" if value is None else "met" if goal.met(value) else "missed"
        judged.append({**goal._asdict(), "value": value, "verdict": verdict})
        del judged[-1]["measure"]
    return judged
