"""Draw the pairs of a task that its limits and the weights of its sources leave."""

import random

import numpy as np
import numpy.typing as npt

from automixalign.config.data import TaskSpec
from automixalign.data.clean import Candidates, Fate
from automixalign.quickstart.spec import synthetic_name

_Numbers = npt.NDArray[np.int64]


def is_drawn(task: TaskSpec) -> bool:
    """Whether limits or weights may leave out pairs. Generated sources make no more than their limit."""
    return any(
        (synthetic_name(source.path) is None and (task.limit or source.limit)) or source.weight
        for source in task.sources
    ) or (task.limit is not None and len(task.sources) > 1)


def draw(task: TaskSpec, candidates: Candidates, seed: int) -> None:
    """Mark the pairs that are not drawn as over the limit.

    First each source is limited by itself. Then sources with weights keep the largest number of pairs in these
    proportions. At last the limit of the task applies to all.
    """
    key = f"limit:{seed}:{task.name}"
    used = np.flatnonzero(candidates.fates == Fate.USED)
    parts = [used[candidates.sources[used] == number] for number in range(len(task.sources))]
    for number, source in enumerate(task.sources):
        parts[number] = _sample(parts[number], source.limit, f"{key}:{number}")
    weights = [source.weight for source in task.sources if source.weight is not None]
    if weights:
        pairs_of_weight_1 = min(len(part) / weight for part, weight in zip(parts, weights, strict=True))
        if task.limit is not None:
            pairs_of_weight_1 = min(pairs_of_weight_1, task.limit / sum(weights))
        for number, weight in enumerate(weights):
            count = int(pairs_of_weight_1 * weight + 1e-9)
            parts[number] = _sample(parts[number], count, f"{key}:{number}:weight")
    drawn = _sample(np.sort(np.concatenate(parts)), task.limit, key)
    fates = np.full(len(candidates), Fate.OVER_LIMIT, dtype=np.uint8)
    fates[drawn] = Fate.USED
    candidates.settle(fates)


def _sample(numbers: _Numbers, count: int | None, key: str) -> _Numbers:
    """`count` of the numbers, in rising order; all of them if there are no more."""
    if count is None or len(numbers) <= count:
        return numbers
    return numbers[np.sort(np.array(random.Random(key).sample(range(len(numbers)), count), dtype=np.int64))]
