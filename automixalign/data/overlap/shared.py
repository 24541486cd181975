"""What the tasks of an experiment have in common."""

from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

import numpy as np

from automixalign.data.clean import Candidates, Fate


class Shared(NamedTuple):
    """What two tasks have in common."""

    tasks: list[str]
    """Their names."""
    prompts: int
    """Prompts that both have, apart from case and white space."""
    pairs: int
    """Whole pairs that both have."""


def shared_by_tasks(tasks: Mapping[str, Candidates]) -> list[Shared]:
    """What each two tasks that share a prompt have in common, among their used pairs."""
    if len(tasks) < 2:
        return []
    used = {name: candidates.fates == Fate.USED for name, candidates in tasks.items()}
    prompts = {name: np.unique(candidates.ranks[used[name]]) for name, candidates in tasks.items()}
    ids = {name: candidates.ids[used[name]] for name, candidates in tasks.items()}
    shared = [
        Shared(
            [first, second],
            prompts=len(np.intersect1d(prompts[first], prompts[second], assume_unique=True)),
            pairs=len(np.intersect1d(ids[first], ids[second], assume_unique=True)),
        )
        for first, second in combinations(tasks, 2)
    ]
    return [each for each in shared if each.prompts]
