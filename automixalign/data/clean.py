"""Drop the pairs of a task that teach nothing.

Memory holds 42 bytes a pair: its id, and digests of 128 bits in place of its texts.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import compress

import numpy as np
import numpy.typing as npt

from automixalign.data.pairs import Pair, sides_are_same, text_of

Ranks = npt.NDArray[np.bytes_]
"""A digest of seed and prompt for each pair, 16 bytes: equal for equal prompts, and the order of the split."""
Mask = npt.NDArray[np.bool_]

_ID, _DIGEST = "S8", "S16"


class CleanPairs:
    """The usable pairs of a task. Iterating reads them in order, from the source of all pairs."""

    def __init__(self, all_pairs: Iterable[Pair], usable: Mask, ranks: Ranks, has_messages: Mask) -> None:
        self.ranks = ranks
        self._all_pairs, self._usable, self._has_messages = all_pairs, usable, has_messages

    def __len__(self) -> int:
        return len(self.ranks)

    def __iter__(self) -> Iterator[Pair]:
        return compress(self._all_pairs, self._usable.data)

    @property
    def conversational(self) -> bool:
        """Whether any pair consists of messages."""
        return bool(self._has_messages.any())

    @property
    def mixed(self) -> bool:
        """Whether some pairs consist of messages and others of plain text."""
        return self.conversational and not self._has_messages.all()

    def take(self, indices: npt.NDArray[np.int64]) -> "CleanPairs":
        """The pairs at these indices, which must be in rising order."""
        usable = np.zeros_like(self._usable)
        usable[np.flatnonzero(self._usable)[indices]] = True
        return CleanPairs(self._all_pairs, usable, self.ranks[indices], self._has_messages[indices])


def rank(seed: int, prompt_key: str) -> bytes:
    """The sort key of a prompt when a task is split; equal prompts have the same key in every task."""
    return hashlib.sha256(f"{seed}\0{prompt_key}".encode()).digest()[:16]


def clean(pairs: Iterable[Pair], seed: int, source: Iterable[Pair]) -> tuple[CleanPairs, Counter[str]]:
    """Drop pairs with identical sides, repeated pairs, and pairs that are preferred both ways.

    Args:
        pairs: read once.
        seed: the seed of the split.
        source: the same pairs; the usable ones are read from it later.

    Returns:
        The usable pairs, and the number of pairs that were read and dropped, by reason.
    """
    differs, ids, sides, ranks, flags = (bytearray() for _ in range(5))
    for pair in pairs:
        differs.append(not sides_are_same(pair))
        if differs[-1]:
            chosen, rejected = text_of(pair.chosen), text_of(pair.rejected)
            both = sorted((chosen, rejected))
            ids += bytes.fromhex(pair.pair_id)
            sides += hashlib.sha256("\0".join((text_of(pair.prompt), *both)).encode()).digest()[:16]
            ranks += rank(seed, pair.prompt_key)
            flags.append(2 * (chosen != both[0]) + (not isinstance(pair.prompt, str)))
    flag = np.frombuffer(flags, dtype=np.uint8)
    unique = np.zeros(len(flag), dtype=np.bool_)
    unique[np.unique(np.frombuffer(ids, dtype=_ID), return_index=True)[1]] = True
    consistent = unique & ~_preferred_both_ways(np.frombuffer(sides, dtype=_DIGEST), flag > 1)
    usable = np.frombuffer(differs, dtype=np.bool_).copy()
    counts = Counter(
        read=len(usable),
        identical_sides=len(usable) - len(flag),
        duplicate=len(flag) - int(unique.sum()),
        contradictory=int(unique.sum()) - int(consistent.sum()),
    )
    usable[usable] = consistent
    has_messages = (flag % 2).astype(np.bool_)[consistent]
    return CleanPairs(source, usable, np.frombuffer(ranks, dtype=_DIGEST)[consistent], has_messages), counts


def _preferred_both_ways(sides: npt.NDArray[np.bytes_], first_rejected: Mask) -> Mask:
    """Which pairs occur with either side as the chosen one.

    Args:
        sides: a digest of prompt and sorted sides for each pair.
        first_rejected: whether the first of the sorted sides is the rejected one.
    """
    result = np.zeros(len(sides), dtype=np.bool_)
    if len(sides):
        order = np.argsort(sides, kind="stable")
        starts, rejected = group_starts(sides[order]), first_rejected[order]
        both = np.logical_or.reduceat(rejected, starts) & ~np.logical_and.reduceat(rejected, starts)
        result[order] = np.repeat(both, np.diff(np.append(starts, len(sides))))
    return result


def group_starts(ordered: npt.NDArray[np.bytes_]) -> npt.NDArray[np.int64]:
    """The index where each group of equal keys begins."""
    return np.flatnonzero(np.append(len(ordered) > 0, ordered[1:] != ordered[:-1]))
