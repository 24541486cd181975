"""Drop the pairs of a task that teach nothing, however many rows there are.

Only keys of fixed size lie in memory, 41 bytes a pair; the pairs themselves go to a file and are read from it.
Pairs are the same by their id; prompts and sides by digests of 128 bits, of which no two will ever be equal.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import compress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from automixalign.data.pairs import Pair, parse_row, sides_are_same, text_of
from automixalign.data.read import Row

Ranks = npt.NDArray[np.bytes_]
"""A digest of seed and prompt each, 16 bytes: which prompts are the same, and in which order they are split."""

Mask = npt.NDArray[np.bool_]

_ID, _DIGEST = "S8", "S16"
_write = json.JSONEncoder(ensure_ascii=False).encode


class CleanPairs:
    """The pairs that are left of a task, in their order; to iterate reads them from `file`."""

    def __init__(self, file: Path, kept: Mask, ranks: Ranks, with_messages: Mask) -> None:
        self.file, self.ranks = file, ranks
        self._kept, self._with_messages = kept, with_messages

    def __len__(self) -> int:
        return len(self.ranks)

    def __iter__(self) -> Iterator[Pair]:
        with self.file.open("rb") as lines:
            for line in compress(lines, self._kept.data):
                yield Pair(*json.loads(line))

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
        return CleanPairs(self.file, kept, self.ranks[places], self._with_messages[places])


def rank(seed: int, prompt_key: str) -> bytes:
    """Where a prompt stands when a task is split; equal prompts stand together, in every task."""
    return hashlib.sha256(f"{seed}\0{prompt_key}".encode()).digest()[:16]


def clean(rows: Iterable[Row], seed: int, file: Path) -> tuple[CleanPairs, Counter[str]]:
    """Parse rows and drop identical sides, repeated pairs and pairs preferred both ways.

    Args:
        seed: of the split.
        file: where the pairs are kept while they are needed; the caller removes it.

    Returns:
        The pairs that are left, and how many rows were read and dropped, by reason.

    Raises:
        DataError: a malformed row.
    """
    counts: Counter[str] = Counter(read=0, identical_sides=0, duplicate=0, contradictory=0)
    ids, sides, ranks, flags = bytearray(), bytearray(), bytearray(), bytearray()
    with file.open("w", encoding="utf-8", newline="\n") as lines:
        for row in rows:
            counts["read"] += 1
            pair = parse_row(row)
            if sides_are_same(pair):
                counts["identical_sides"] += 1
                continue
            chosen, rejected = text_of(pair.chosen), text_of(pair.rejected)
            both = sorted((chosen, rejected))
            ids += bytes.fromhex(pair.pair_id)
            sides += hashlib.sha256("\0".join((text_of(pair.prompt), *both)).encode()).digest()[:16]
            ranks += rank(seed, pair.prompt_key)
            flags.append(2 * (chosen != both[0]) + (not isinstance(pair.prompt, str)))
            lines.write(f"{_write(pair)}\n")
    kept = np.zeros(len(flags), dtype=np.bool_)
    kept[np.unique(np.frombuffer(ids, dtype=_ID), return_index=True)[1]] = True
    counts["duplicate"] = len(kept) - int(kept.sum())
    found = np.frombuffer(flags, dtype=np.uint8)
    torn = _torn(np.frombuffer(sides, dtype=_DIGEST), found > 1)
    counts["contradictory"] = int((kept & torn).sum())
    kept &= ~torn
    left = CleanPairs(file, kept, np.frombuffer(ranks, dtype=_DIGEST)[kept], (found % 2).astype(bool)[kept])
    return left, counts


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
