"""Split tasks into train, validation and test by prompt, so that no prompt is in two splits."""

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from automixalign.config.data import SplitSpec
from automixalign.data.clean import Ranks, group_starts
from automixalign.data.store import SPLITS, TEST, TRAIN, VALIDATION
from automixalign.system.errors import DataError

Labels = npt.NDArray[np.int8]
"""The split of each pair, as its index in `SPLITS`, or `OVER_CAP`."""
OVER_CAP = -1
_UNASSIGNED = -2


def split_tasks(tasks: Mapping[str, Ranks], spec: SplitSpec) -> dict[str, Labels]:
    """Assign every pair of every task to a split.

    All pairs of a prompt go to one split, and a prompt that several tasks share goes to the same split in each.
    A task's prompts are in the order of a digest of seed and prompt. They fill test first, then validation.

    Args:
        tasks: task -> the ranks of its pairs, in rising order.
        spec: the shares and caps of the splits.

    Returns:
        Task -> the labels of its pairs, in the order of their ranks.

    Raises:
        DataError: a task has too few prompts for the splits.
    """
    assigned: list[tuple[Ranks, Labels]] = []
    result = {}
    for task, ranks in tasks.items():
        starts = group_starts(ranks)
        sizes = np.diff(np.append(starts, len(ranks)))
        prompts = ranks[starts]
        split = np.full(len(prompts), _UNASSIGNED, dtype=np.int8)
        for earlier_prompts, earlier_split in assigned:
            at = np.minimum(np.searchsorted(earlier_prompts, prompts), len(earlier_prompts) - 1)
            split = np.where(earlier_prompts[at] == prompts, earlier_split[at], split)
        for name, share in ((TEST, spec.test), (VALIDATION, spec.validation)):
            number = SPLITS.index(name)
            candidates = np.where((split == number) | (split == _UNASSIGNED), sizes, 0)
            pairs_before = np.cumsum(candidates) - candidates
            split[(split == _UNASSIGNED) & (pairs_before < _round_up(len(ranks) * share))] = number
        split[split == _UNASSIGNED] = SPLITS.index(TRAIN)
        assigned.append((prompts, split))
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


def _round_up(count: float) -> int:
    """Round up, but not for an error of floating point: 0.07 of 100 is 7.000000000000001, and means 7."""
    return math.ceil(round(count, 6))
