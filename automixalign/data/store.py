"""Prepared splits on disk: `FOLDER/TASK/{train,validation,test}.parquet`, and the card of all tasks."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from automixalign.storage import files

TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")

IDS = ("pair_id", "prompt_ids", "chosen_ids", "rejected_ids")
"""The columns that training and scoring read; the other columns, texts, take most of the memory."""
_GROUP_ROWS, _GROUP_BYTES = 8192, 64 << 20
"""Limits of a row group, the part of a file that is written and read at once."""


def split_path(folder: Path, task: str, split: str) -> Path:
    """The Parquet file of one split of one task, in a data folder or in a cache laid out like it."""
    return folder / task / f"{split}.parquet"


def tasks_of(data: Path) -> list[str]:
    """The tasks of a data folder, in the order of the configuration."""
    return [task["name"] for task in read_card(data)["tasks"]]


def read_card(data: Path) -> dict[str, Any]:
    """The statistics card of a data folder."""
    card: dict[str, Any] = files.read_json(data / "card.json")
    return card


def count_pairs(data: Path, splits: Iterable[str]) -> int:
    """The pairs of all tasks in some splits."""
    return sum(task["pairs"][split] for task in read_card(data)["tasks"] for split in splits)


def split_schema(conversational: bool) -> pa.Schema:
    """The columns of a split.

    A message has its `role`, its `content` as text, and `more`: JSON of what else it holds, such as tool calls.
    `generation_ids` is the whole prompt, from which answers are generated; null where it is `prompt_ids`.
    `options` is JSON of `tools` and `chat_template_kwargs`. `row` is JSON of the columns that the task's
    verifier reads, in the test split alone. `swapped` marks pairs whose sides `label_noise` has exchanged.
    """
    message = pa.struct([("role", pa.string()), ("content", pa.string()), ("more", pa.string())])
    turn = pa.list_(message) if conversational else pa.string()
    return pa.schema(
        [("pair_id", pa.string()), ("task", pa.string())]
        + [(name, turn) for name in ("prompt", "chosen", "rejected")]
        + [(name, pa.list_(pa.int32())) for name in ("prompt_ids", "chosen_ids", "rejected_ids")]
        + [("generation_ids", pa.list_(pa.int32()))]
        + [("options", pa.string()), ("answer", pa.string()), ("row", pa.string()), ("swapped", pa.bool_())]
    )


def turn_of(stored: Any) -> str | list[dict[str, Any]]:
    """A turn from the fields of `split_schema`: text, or messages."""
    if isinstance(stored, str):
        return stored
    return [
        {"role": each["role"], "content": each["content"], **json.loads(each["more"] or "{}")}
        for each in stored
    ]


def read_split(data: Path, task: str, split: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the pairs of one split: `pair_id`, `task`, text and `*_ids` of three turns,
    `generation_ids`, `options`, `answer`, `row` and `swapped`.

    Args:
        columns: read these columns only.
    """
    return files.read_table(split_path(data, task, split), None if columns is None else list(columns))


class SplitWriter:
    """Collects rows, and writes them as row groups of one size."""

    def __init__(self, writer: pq.ParquetWriter, schema: pa.Schema) -> None:
        self._writer = writer
        self._parts = [schema.empty_table()]
        self._rows = self._bytes = 0

    def add(self, rows: pa.Table) -> None:
        """Append rows."""
        self._parts.append(rows)
        self._rows += len(rows)
        self._bytes += rows.nbytes
        while self._rows > _GROUP_ROWS or self._bytes > _GROUP_BYTES:
            buffer = pa.concat_tables(self._parts)
            self._writer.write_table(buffer.slice(0, _GROUP_ROWS).combine_chunks())
            rest = buffer.slice(_GROUP_ROWS)
            self._parts, self._rows, self._bytes = [rest], len(rest), rest.nbytes

    def end(self) -> None:
        """Write the remaining rows."""
        self._writer.write_table(pa.concat_tables(self._parts).combine_chunks())


@contextmanager
def split_writer(path: Path, schema: pa.Schema) -> Iterator[SplitWriter]:
    """Write the file of a split, of any size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.table_writer(path, schema) as file:
        writer = SplitWriter(file, schema)
        yield writer
        writer.end()


def task_digest(data: Path, task: str) -> str:
    """SHA-256 over the files of a task's splits, by which caches name the data they belong to."""
    return files.digest(data / task)
