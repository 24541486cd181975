"""Split tasks into train, validation and test by prompt, so that no prompt is in two splits."""

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from automixalign.config.data import SplitSpec
from automixalign.data.clean import Candidates, Fate, Ranks, group_starts
from automixalign.data.store import SPLITS, TEST, TRAIN, VALIDATION
from automixalign.system.errors import DataError

Labels = npt.NDArray[np.int8]
"""The split of each candidate of a task, as its index in `SPLITS`, or `NO_SPLIT`."""
NO_SPLIT = -1
_UNASSIGNED = -2


def split_tasks(tasks: Mapping[str, Candidates], spec: SplitSpec) -> dict[str, Labels]:
    """Assign every used pair of every task to a split, and mark those over a cap of the splits.

    All pairs of a prompt go to one split, and a prompt that several tasks share goes to the same split in each.
    A task's prompts are in the order of a digest of seed and prompt. They fill test first, then validation.

    Args:
        tasks: task -> its candidates.
        spec: the shares and caps of the splits.

    Returns:
        Task -> the labels of its candidates.

    Raises:
        DataError: a task has too few prompts for the splits.
    """
    assigned: list[tuple[Ranks, npt.NDArray[np.int8]]] = []
    result = {}
    for task, candidates in tasks.items():
        ordered = candidates.used
        ranks = candidates.ranks[ordered]
        starts = group_starts(ranks)
        sizes = np.diff(np.append(starts, len(ranks)))
        prompts = ranks[starts]
        split = np.full(len(prompts), _UNASSIGNED, dtype=np.int8)
        for earlier_prompts, earlier_split in assigned:
            at = np.minimum(np.searchsorted(earlier_prompts, prompts), len(earlier_prompts) - 1)
            split = np.where(earlier_prompts[at] == prompts, earlier_split[at], split)
        for name, share in ((TEST, spec.test), (VALIDATION, spec.validation)):
            number = SPLITS.index(name)
            room = np.where((split == number) | (split == _UNASSIGNED), sizes, 0)
            pairs_before = np.cumsum(room) - room
            split[(split == _UNASSIGNED) & (pairs_before < _round_up(len(ranks) * share))] = number
        split[split == _UNASSIGNED] = SPLITS.index(TRAIN)
        assigned.append((prompts, split))
        ordered_labels = np.repeat(split, sizes)
        for number, cap in enumerate((spec.max_train, spec.max_validation, spec.max_test)):
            if cap is not None:
                ordered_labels[np.flatnonzero(ordered_labels == number)[cap:]] = NO_SPLIT
        for number, name in enumerate(SPLITS):
            if not (ordered_labels == number).any() and (name != VALIDATION or spec.validation > 0):
                raise DataError(
                    f"task {task}: {len(ranks)} usable pairs with {len(prompts)} prompts leave its {name} "
                    "split empty; give it more data or change 'split'"
                )
        candidates.fates[ordered[ordered_labels == NO_SPLIT]] = Fate.OVER_CAP
        labels = result[task] = np.full(len(candidates), NO_SPLIT, dtype=np.int8)
        labels[ordered] = ordered_labels
    return result


def _round_up(count: float) -> int:
    """Round up, but not for an error of floating point: 0.07 of 100 is 7.000000000000001, and means 7."""
    return math.ceil(round(count, 6))
