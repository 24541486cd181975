"""Split tasks into train, validation and test by prompt, so that no prompt stands on two sides."""

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from automixalign.config.data import SplitSpec
from automixalign.data.clean import Ranks, starts_of_equals
from automixalign.data.store import SPLITS, TEST, TRAIN, VALIDATION
from automixalign.system.errors import DataError

Labels = npt.NDArray[np.int8]
"""The split of each pair, as its place in `SPLITS`, or `OVER_CAP`."""
OVER_CAP = -1
_FREE = -2


def split_tasks(tasks: Mapping[str, Ranks], spec: SplitSpec) -> dict[str, Labels]:
    """Assign every pair of every task to a split.

    All pairs of a prompt go to one split, and a prompt that several tasks share goes to the same split in each.
    Within a task, prompts are ordered by a hash of seed and prompt; the first fill test, then validation.

    Args:
        tasks: the ranks of each task's pairs, in rising order.

    Returns:
        The labels of each task's pairs, in the order of their ranks.

    Raises:
        DataError: a task has too few prompts for the splits that are asked for.
    """
    known: list[tuple[Ranks, Labels]] = []
    result = {}
    for task, ranks in tasks.items():
        starts = starts_of_equals(ranks)
        sizes = np.diff(np.append(starts, len(ranks)))
        prompts = ranks[starts]
        split = np.full(len(prompts), _FREE, dtype=np.int8)
        for others, theirs in known:
            at = np.minimum(np.searchsorted(others, prompts), len(others) - 1)
            split = np.where(others[at] == prompts, theirs[at], split)
        for name, share in ((TEST, spec.test), (VALIDATION, spec.validation)):
            number = SPLITS.index(name)
            there = np.where((split == number) | (split == _FREE), sizes, 0)
            before = np.cumsum(there) - there
            split[(split == _FREE) & (before < _share(len(ranks), share))] = number
        split[split == _FREE] = SPLITS.index(TRAIN)
        known.append((prompts, split))
        labels = np.repeat(split, sizes)
        for number, cap in enumerate((spec.max_train, spec.max_validation, spec.max_test)):
            if cap is not None:
                labels[np.flatnonzero(labels == number)[cap:]] = OVER_CAP
        for number, name in enumerate(SPLITS):
            if not (labels == number).any() and (name != VALIDATION or spec.validation > 0):
                raise DataError(
                    f"task {task}: {len(ranks)} usable pairs with {len(prompts)} prompts leave its {name} "
                    "split empty; give it more data or change 'split'"
                )
        result[task] = labels
    return result


def _share(count: int, share: float) -> int:
    """The share rounded up; 7% of 100 are 7, though the product in floating point lies above it."""
    return math.ceil(round(count * share, 6))
