"""What the tests of reading share."""

import gzip
import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pytest

from automixalign.config.data import SourceSpec
from automixalign.data.reading.row import Row
from automixalign.data.reading.rows import open_source
from automixalign.system.errors import DataError
from tests.data.rows import Data, plain

ROWS = [plain("one", "a", "b"), plain("zwei ä", "a", "b"), plain("three\nlines", "a", '"b", c')]
LINES = [json.dumps(row, ensure_ascii=False) for row in ROWS]


class Opened(NamedTuple):
    """A source that was read to its end."""

    rows: list[Row]
    passed_over: dict[str, str]

    @property
    def data(self) -> list[Any]:
        """The columns of the rows."""
        return [row.data for row in self.rows]

    @property
    def prompts(self) -> list[Any]:
        """The prompts of the rows, in order of the alphabet."""
        return sorted(row["prompt"] for row in self.data)


def open_rows(path: Path | str, columns: Collection[str] | None = None, seed: int = 0, **keys: Any) -> Opened:
    """Read a source twice; both readings must agree."""
    spec = SourceSpec(path=str(path), **keys)
    with open_source("task task", spec, columns, seed) as source:
        rows = list(source)
        assert list(source) == rows
        return Opened(rows, source.passed_over)


def refused(path: Path | str, match: str, **keys: Any) -> None:
    """Expect a DataError when the source is opened or read."""
    with pytest.raises(DataError, match=match):
        open_rows(path, **keys)


def compress(content: bytes, suffix: str) -> bytes:
    """Compress a file's content as its suffix says."""
    if suffix.lower() == ".gz":
        return gzip.compress(content)
    return pa.compress(content, "zstd", asbytes=True) if suffix.lower() == ".zst" else content


def write_prompts(folder: Path, files: Iterable[str]) -> Path:
    """Write JSONL files of one row each, whose prompt is the name of the file."""
    for file in files:
        row: Data = plain(file, "a", "b")
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(json.dumps(row) + "\n")
    return folder
