"""Pairs on disk, from where they are read again: sooner than from their source, and as they were."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from automixalign.data.pairs import Pair

_write = json.JSONEncoder(ensure_ascii=False).encode


class PairFile:
    """A file of pairs, a line each; to iterate reads them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep(self, pairs: Iterable[Pair]) -> Iterator[Pair]:
        """The same pairs, each written as it passes."""
        with self.path.open("w", encoding="utf-8", newline="\n") as lines:
            for pair in pairs:
                lines.write(f"{_write(pair)}\n")
                yield pair

    def __iter__(self) -> Iterator[Pair]:
        with self.path.open("rb") as lines:
            for line in lines:
                yield Pair(*json.loads(line))
