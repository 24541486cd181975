"""Find prompts that differ in a few words, by MinHash and locality-sensitive hashing (datasketch)."""

import re
from collections.abc import Mapping

from datasketch import MinHash, MinHashLSH

from automixalign.data.clean import Candidates

_WORDS = re.compile(r"\w+")
_SHINGLE_WORDS = 3
_PERMUTATIONS = 128


class NearDuplicates:
    """Takes the prompts of all tasks, and puts those that are alike into groups.

    Two prompts are alike if MinHash estimates the Jaccard similarity of their sets of three consecutive words
    to be at least `threshold`. A group holds all prompts that such pairs link. A prompt takes about 2 KB.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        # The index rather finds too many candidates than too few, as each is compared afterwards.
        self._index = MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS, weights=(0.1, 0.9))
        self._hashes: dict[bytes, MinHash] = {}
        self._groups: dict[bytes, bytes] = {}

    def add(self, rank: bytes, prompt: str) -> None:
        """Take a prompt with its rank; one that was taken before costs nothing."""
        if rank in self._hashes:
            return
        words = _WORDS.findall(prompt.casefold())
        starts = range(max(1, len(words) - _SHINGLE_WORDS + 1))
        shingles = {" ".join(words[start : start + _SHINGLE_WORDS]).encode() for start in starts}
        new = self._hashes[rank] = MinHash(_PERMUTATIONS)
        new.update_batch(sorted(shingles))
        for other in self._index.query(new):
            if new.jaccard(self._hashes[other]) >= self._threshold:
                first, second = sorted((self._group(rank), self._group(other)))
                self._groups[second] = first
        self._index.insert(rank, new)

    def _group(self, rank: bytes) -> bytes:
        """The smallest rank of a prompt's group."""
        while (parent := self._groups.get(rank, rank)) != rank:
            rank = parent
        return rank

    def join(self, tasks: Mapping[str, Candidates]) -> dict[str, int]:
        """Give the prompts of a group one rank, so that they go to one split.

        Returns:
            The number of `prompts` that are alike to another, and of their `groups`.
        """
        groups = {rank: self._group(rank) for rank in self._hashes}
        joined = {rank: group for rank, group in groups.items() if rank != group}
        for candidates in tasks.values():
            ranks = candidates.ranks.copy()
            for index, rank in enumerate(ranks.tolist()):
                ranks[index] = joined.get(rank, rank)
            candidates.ranks = ranks
        leaders = set(joined.values())
        return {"prompts": len(joined) + len(leaders), "groups": len(leaders)}
