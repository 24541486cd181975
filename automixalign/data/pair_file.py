"""A file of parsed pairs, which is faster to read again than their source and cannot change meanwhile."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from automixalign.data.pairs import Pair

_to_json = json.JSONEncoder(ensure_ascii=False).encode


class PairFile:
    """JSON lines, one pair a line. Iterating reads the pairs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write_through(self, pairs: Iterable[Pair]) -> Iterator[Pair]:
        """Yield the pairs, and write each to the file."""
        with self.path.open("w", encoding="utf-8", newline="\n") as lines:
            for pair in pairs:
                lines.write(f"{_to_json(pair)}\n")
                yield pair

    def __iter__(self) -> Iterator[Pair]:
        with self.path.open("rb") as lines:
            for line in lines:
                yield Pair(*json.loads(line))
