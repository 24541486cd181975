"""Split tasks into train, validation and test by prompt, so that no prompt stands on two sides."""

import hashlib
import math
from collections.abc import Mapping

from automixalign.config import SplitSpec
from automixalign.data.pairs import Pair
from automixalign.errors import DataError

TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")


def split_tasks(
    tasks: Mapping[str, list[Pair]], spec: SplitSpec, seed: int
) -> dict[str, dict[str, list[Pair]]]:
    """Assign every pair of every task to a split: {task: {split: pairs}}.

    All pairs of a prompt go to one split, and a prompt that several tasks share goes to the same split in each.
    Within a task, prompts are ordered by a hash of seed and prompt; the first fill test, then validation.

    Raises:
        DataError: a task has too few prompts for the splits that are asked for.
    """
    assigned: dict[str, str] = {}
    result: dict[str, dict[str, list[Pair]]] = {}
    for task, pairs in tasks.items():
        groups: dict[str, list[Pair]] = {}
        for pair in pairs:
            groups.setdefault(pair.prompt_key, []).append(pair)
        room = {
            TEST: _share(len(pairs), spec.test),
            VALIDATION: _share(len(pairs), spec.validation),
        }
        parts: dict[str, list[Pair]] = {name: [] for name in SPLITS}
        for prompt in sorted(groups, key=lambda prompt: _rank(seed, prompt)):
            split = assigned.get(prompt)
            if split is None:
                split = next((name for name in (TEST, VALIDATION) if len(parts[name]) < room[name]), TRAIN)
                assigned[prompt] = split
            parts[split] += groups[prompt]
        caps = {TRAIN: spec.max_train, VALIDATION: spec.max_validation, TEST: spec.max_test}
        result[task] = {name: parts[name][: caps[name]] for name in SPLITS}
        for name in SPLITS:
            if not result[task][name] and (name != VALIDATION or spec.validation > 0):
                raise DataError(
                    f"task {task}: {len(pairs)} usable pairs with {len(groups)} prompts leave its {name} "
                    "split empty; give it more data or change 'split'"
                )
    return result


def _share(count: int, share: float) -> int:
    """The share rounded up; 7% of 100 are 7, though the product in floating point lies above it."""
    return math.ceil(round(count * share, 6))


def _rank(seed: int, prompt: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{prompt}".encode()).digest()
