"""Find the pairs of a task that teach nothing.

Memory holds 28 bytes a pair: its id, and digests of 64 bits in place of its texts.
"""

import hashlib
from array import array
from collections.abc import Container, Iterator
from enum import IntEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from automixalign.data.pairs import Pair, flat, sides_are_same, texts_of
from automixalign.system.errors import DataError

Ranks = npt.NDArray[np.bytes_]
"""A digest of seed and prompt for each pair, 8 bytes: equal for equal prompts, and the order of the split."""
Mask = npt.NDArray[np.bool_]

_BYTES = 8
"""Of an id and of a digest. Two of a million different pairs are equal with a probability of 3e-8."""
_CHANGED = "a source changed while it was read; start again when nothing writes to it"


class Fate(IntEnum):
    """What becomes of a pair whose sides differ. The names in lower case are the counts of the card."""

    USED = 0
    DUPLICATE = 1
    CONTRADICTORY = 2
    CONTAMINATED = 3
    OVER_LIMIT = 4
    PROMPT_TOO_LONG = 5
    LONG_ANSWER = 6
    IDENTICAL_WHEN_CUT = 7
    OVER_CAP = 8


class Candidates:
    """The pairs of a task whose sides differ, numbered in the order of reading."""

    def __init__(
        self, sources: npt.NDArray[np.uint16], ids: bytearray, ranks: Ranks, fates: npt.NDArray[np.uint8]
    ):
        self.sources = sources
        """The number of each pair's source."""
        self.ranks = ranks
        self.fates = fates
        """The `Fate` of each pair, as far as it is known."""
        self._ids = ids

    @property
    def ids(self) -> npt.NDArray[np.bytes_]:
        """The ids of the pairs as 8 bytes."""
        return np.frombuffer(self._ids, dtype=f"S{_BYTES}")

    def __len__(self) -> int:
        return len(self.fates)

    @property
    def used(self) -> npt.NDArray[np.int64]:
        """The numbers of the pairs that are still used, in the order of their ranks."""
        numbers = np.flatnonzero(self.fates == Fate.USED)
        return numbers[np.argsort(self.ranks[numbers], kind="stable")]

    def settle(self, fates: npt.NDArray[np.uint8]) -> None:
        """Give every pair that is still used its fate."""
        self.fates = np.where(self.fates == Fate.USED, fates, self.fates)

    def used_among(self, pairs: Iterator[Pair]) -> Iterator[Pair]:
        """The pairs that are still used, from a second reading.

        Raises:
            DataError: the source has changed since the first reading.
        """
        number = 0
        for pair in pairs:
            if sides_are_same(pair):
                continue
            here = slice(number * _BYTES, (number + 1) * _BYTES)
            if self._ids[here] != bytes.fromhex(pair.pair_id):
                raise DataError(_CHANGED)
            if self.fates[number] == Fate.USED:
                yield pair
            number += 1
        if number < len(self):
            raise DataError(_CHANGED)


def rank(seed: int, prompt_key: str) -> bytes:
    """The sort key of a prompt when a task is split; equal prompts have the same key in every task."""
    return hashlib.sha256(f"{seed}\0{prompt_key}".encode()).digest()[:_BYTES]


class PromptIndex(Protocol):
    """Takes the prompts of all tasks."""

    def add(self, rank: bytes, prompt: str) -> None:
        """Take a prompt and its rank."""


class Collector:
    """Takes the pairs of a task one by one, and compares them all at the end.

    Args:
        seed: the seed of the split.
        contamination: prompts that must not be trained on.
        near_duplicates: takes all prompts.
    """

    def __init__(
        self, seed: int, contamination: Container[str] | None = None, near_duplicates: PromptIndex | None = None
    ) -> None:
        self.identical_sides: dict[int, int] = {}
        """Source -> the number of its pairs whose sides are the same; they are no candidates."""
        self._seed, self._contamination, self._near_duplicates = seed, contamination, near_duplicates
        self._sources = array("H")
        self._ids, self._sides, self._ranks, self._in_order, self._contaminated = (
            bytearray() for _ in range(5)
        )

    def add(self, source: int, pair: Pair) -> bool:
        """Take a pair; returns whether it is a candidate."""
        if sides_are_same(pair):
            self.identical_sides[source] = self.identical_sides.get(source, 0) + 1
            return False
        chosen, rejected = flat(pair.chosen), flat(pair.rejected)
        in_order = chosen < rejected
        first, second = (chosen, rejected) if in_order else (rejected, chosen)
        sides = f"{flat(pair.prompt)}\0\0{first}\0\0{second}\0\0{pair.options or ''}"
        self._sources.append(source)
        self._ids += bytes.fromhex(pair.pair_id)
        self._sides += hashlib.sha256(sides.encode()).digest()[:_BYTES]
        key = rank(self._seed, pair.prompt_key)
        self._ranks += key
        self._in_order.append(in_order)
        contamination = self._contamination
        self._contaminated.append(
            contamination is not None and any(text in contamination for text in texts_of(pair.prompt))
        )
        if self._near_duplicates is not None:
            # As numpy reads a key from the ranks, without the zeros at its end.
            self._near_duplicates.add(key.rstrip(b"\0"), "\n".join(texts_of(pair.prompt)))
        return True

    def ranks(self, start: int, count: int) -> Ranks:
        """The ranks of `count` candidates from number `start` on."""
        some = bytes(self._ranks[start * _BYTES : (start + count) * _BYTES])
        return np.frombuffer(some, dtype=f"S{_BYTES}")

    def finish(self) -> Candidates:
        """The candidates, with repeated pairs and pairs that are preferred both ways found."""
        fates = np.full(len(self._sources), Fate.DUPLICATE, dtype=np.uint8)
        unique = np.unique(np.frombuffer(self._ids, dtype=f"S{_BYTES}"), return_index=True)[1]
        fates[unique] = Fate.USED
        sides = np.frombuffer(self._sides, dtype=f"S{_BYTES}")
        both_ways = _preferred_both_ways(sides, np.frombuffer(self._in_order, dtype=np.bool_))
        fates[(fates == Fate.USED) & both_ways] = Fate.CONTRADICTORY
        fates[(fates == Fate.USED) & np.frombuffer(self._contaminated, dtype=np.bool_)] = Fate.CONTAMINATED
        ranks = np.frombuffer(self._ranks, dtype=f"S{_BYTES}")
        return Candidates(np.frombuffer(self._sources, dtype=np.uint16), self._ids, ranks, fates)


def _preferred_both_ways(sides: npt.NDArray[np.bytes_], in_order: Mask) -> Mask:
    """Which pairs occur with either side as the chosen one.

    Args:
        sides: a digest of prompt and sorted sides for each pair.
        in_order: whether the first of the sorted sides is the chosen one.
    """
    result = np.zeros(len(sides), dtype=np.bool_)
    if len(sides):
        order = np.argsort(sides, kind="stable")
        starts, chosen_first = group_starts(sides[order]), in_order[order]
        both = np.logical_or.reduceat(chosen_first, starts) & ~np.logical_and.reduceat(chosen_first, starts)
        result[order] = np.repeat(both, np.diff(np.append(starts, len(sides))))
    return result


def group_starts(ordered: npt.NDArray[np.bytes_]) -> npt.NDArray[np.int64]:
    """The index where each group of equal keys begins."""
    return np.flatnonzero(np.append(len(ordered) > 0, ordered[1:] != ordered[:-1]))
