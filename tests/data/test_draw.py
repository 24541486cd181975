"""Limits and weights leave a drawn part of a task's pairs."""

import itertools

import numpy as np
import pytest

from automixalign.config.data import TaskSpec
from automixalign.data.clean import Candidates, Collector, Fate
from automixalign.data.draw import draw, is_drawn
from tests.data.rows import Data, parsed, plain


def candidates_of(*sizes: int) -> Candidates:
    """As many pairs of each source."""
    collector, number = Collector(0), itertools.count()
    for source, size in enumerate(sizes):
        assert all([collector.add(source, parsed(plain(f"p{next(number)}", "a", "b"))) for _ in range(size)])
    return collector.finish()


def drawn(sizes: tuple[int, ...], sources: list[Data], limit: int | None = None, seed: int = 0) -> list[int]:
    """How many pairs of each source are left."""
    return np.bincount(_left(sizes, sources, limit, seed)[0], minlength=len(sizes)).tolist()


def _left(
    sizes: tuple[int, ...], sources: list[Data], limit: int | None, seed: int
) -> tuple[list[int], list[int]]:
    specs = [{"path": f"{number}.jsonl", **source} for number, source in enumerate(sources)]
    task = TaskSpec.model_validate({"name": "task", "sources": specs, "limit": limit})
    assert is_drawn(task)
    candidates = candidates_of(*sizes)
    draw(task, candidates, seed)
    used = np.flatnonzero(candidates.fates == Fate.USED)
    assert set(candidates.fates.tolist()) <= {Fate.USED, Fate.OVER_LIMIT}
    return candidates.sources[used].tolist(), used.tolist()


@pytest.mark.parametrize(
    ("sizes", "sources", "limit", "left"),
    [
        ((50, 50), [{"limit": 10}, {}], None, [10, 50]),
        ((5, 50), [{"limit": 10}, {"limit": 20}], None, [5, 20]),
        ((90, 50), [{"weight": 3}, {"weight": 1}], None, [90, 30]),
        ((30, 50), [{"weight": 3}, {"weight": 1}], None, [30, 10]),
        ((90, 50), [{"weight": 3}, {"weight": 1}], 40, [30, 10]),
        ((90, 90), [{"weight": 0.5, "limit": 10}, {"weight": 1}], None, [10, 20]),
        ((10, 10, 10), [{"weight": 0.1}, {"weight": 0.2}, {"weight": 0.3}], None, [3, 6, 10]),
    ],
)
def test_draw(sizes: tuple[int, ...], sources: list[Data], limit: int | None, left: list[int]) -> None:
    assert drawn(sizes, sources, limit) == left


def test_the_limit_of_a_task_draws_among_all_sources() -> None:
    counts = drawn((500, 500), [{}, {}], limit=200)
    assert sum(counts) == 200
    assert min(counts) > 60


def test_the_seed_draws() -> None:
    numbers = [_left((100,), [{"limit": 10}], None, seed)[1] for seed in (0, 0, 1)]
    assert numbers[0] == numbers[1] != numbers[2]


def test_a_generated_source_is_read_once() -> None:
    task = {"name": "task", "source": "synthetic:arithmetic", "limit": 5}
    assert not is_drawn(TaskSpec.model_validate(task))
    assert is_drawn(TaskSpec.model_validate({"name": "task", "source": "a.jsonl", "limit": 5}))
    mixed = {"name": "task", "sources": [{"path": "synthetic:arithmetic", "limit": 5}, "a.jsonl"], "limit": 6}
    assert is_drawn(TaskSpec.model_validate(mixed))
