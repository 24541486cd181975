"""Drop the pairs of a task that teach nothing, however many there are.

Only keys of fixed size lie in memory, 42 bytes a pair: pairs are the same by their id, prompts and sides by
digests of 128 bits, of which no two will ever be equal by chance.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import compress

import numpy as np
import numpy.typing as npt

from automixalign.data.pairs import Pair, sides_are_same, text_of

Ranks = npt.NDArray[np.bytes_]
"""A digest of seed and prompt each, 16 bytes: which prompts are the same, and in which order they are split."""
Mask = npt.NDArray[np.bool_]

_ID, _DIGEST = "S8", "S16"


class CleanPairs:
    """The pairs that are left of a task; to iterate reads them, in their order, from where all of them are."""

    def __init__(self, everything: Iterable[Pair], kept: Mask, ranks: Ranks, with_messages: Mask) -> None:
        self.ranks = ranks
        self._everything, self._kept, self._with_messages = everything, kept, with_messages

    def __len__(self) -> int:
        return len(self.ranks)

    def __iter__(self) -> Iterator[Pair]:
        return compress(self._everything, self._kept.data)

    @property
    def conversational(self) -> bool:
        """Whether there are messages among them."""
        return bool(self._with_messages.any())

    @property
    def mixed(self) -> bool:
        """Whether there are messages and plain text."""
        return self.conversational and not self._with_messages.all()

    def take(self, places: npt.NDArray[np.int64]) -> "CleanPairs":
        """Those at some places, which must rise."""
        kept = np.zeros_like(self._kept)
        kept[np.flatnonzero(self._kept)[places]] = True
        return CleanPairs(self._everything, kept, self.ranks[places], self._with_messages[places])


def rank(seed: int, prompt_key: str) -> bytes:
    """Where a prompt stands when a task is split; equal prompts stand together, in every task."""
    return hashlib.sha256(f"{seed}\0{prompt_key}".encode()).digest()[:16]


def clean(pairs: Iterable[Pair], seed: int, again: Iterable[Pair]) -> tuple[CleanPairs, Counter[str]]:
    """Drop identical sides, repeated pairs and pairs preferred both ways.

    Args:
        pairs: read once.
        seed: of the split.
        again: from where the pairs that are left can be read: the same pairs.

    Returns:
        The pairs that are left, and how many were read and dropped, by reason.
    """
    differ, ids, sides, ranks, flags = (bytearray() for _ in range(5))
    for pair in pairs:
        differ.append(not sides_are_same(pair))
        if differ[-1]:
            chosen, rejected = text_of(pair.chosen), text_of(pair.rejected)
            both = sorted((chosen, rejected))
            ids += bytes.fromhex(pair.pair_id)
            sides += hashlib.sha256("\0".join((text_of(pair.prompt), *both)).encode()).digest()[:16]
            ranks += rank(seed, pair.prompt_key)
            flags.append(2 * (chosen != both[0]) + (not isinstance(pair.prompt, str)))
    found = np.frombuffer(flags, dtype=np.uint8)
    unique = np.zeros(len(found), dtype=np.bool_)
    unique[np.unique(np.frombuffer(ids, dtype=_ID), return_index=True)[1]] = True
    left = unique & ~_torn(np.frombuffer(sides, dtype=_DIGEST), found > 1)
    kept = np.frombuffer(differ, dtype=np.bool_).copy()
    counts = Counter(
        read=len(kept),
        identical_sides=len(kept) - len(found),
        duplicate=len(found) - int(unique.sum()),
        contradictory=int(unique.sum()) - int(left.sum()),
    )
    kept[kept] = left
    with_messages = (found % 2).astype(np.bool_)[left]
    return CleanPairs(again, kept, np.frombuffer(ranks, dtype=_DIGEST)[left], with_messages), counts


def _torn(sides: npt.NDArray[np.bytes_], way: Mask) -> Mask:
    """Which pairs have sides that are preferred both ways, where `way` is which of the two is chosen."""
    torn = np.zeros(len(sides), dtype=np.bool_)
    if len(sides):
        order = np.argsort(sides, kind="stable")
        starts, ways = starts_of_equals(sides[order]), way[order]
        both = np.logical_or.reduceat(ways, starts) & ~np.logical_and.reduceat(ways, starts)
        torn[order] = np.repeat(both, np.diff(np.append(starts, len(sides))))
    return torn


def starts_of_equals(ordered: npt.NDArray[np.bytes_]) -> npt.NDArray[np.int64]:
    """Where each stretch of equal keys begins."""
    return np.flatnonzero(np.append(len(ordered) > 0, ordered[1:] != ordered[:-1]))
