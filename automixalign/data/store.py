"""Where prepared splits lie and how to read them: `FOLDER/TASK/{train,validation,test}.parquet`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from automixalign.storage import files

TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")

IDS = ("pair_id", "prompt_ids", "chosen_ids", "rejected_ids")
"""The columns of a split that are trained on and scored; the text takes most of the memory."""
_ROWS, _BYTES = 8192, 64 << 20
"""Of a row group, the part of a file that is written and read at once: so many rows, or fewer that are long."""


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


def split_schema(conversational: bool) -> pa.Schema:
    """The columns of a split; `swapped` are pairs whose sides were exchanged as `label_noise` asks."""
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    turn = pa.list_(message) if conversational else pa.string()
    return pa.schema(
        [("pair_id", pa.string()), ("task", pa.string())]
        + [(name, turn) for name in ("prompt", "chosen", "rejected")]
        + [(name, pa.list_(pa.int32())) for name in ("prompt_ids", "chosen_ids", "rejected_ids")]
        + [("answer", pa.string()), ("swapped", pa.bool_())]
    )


def read_split(data: Path, task: str, split: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The pairs of one split: `pair_id`, `task`, text and `*_ids` of the three turns, `answer`, `swapped`.

    Args:
        columns: those that are wanted, where not all are.
    """
    return files.read_table(split_path(data, task, split), None if columns is None else list(columns))


class SplitWriter:
    """Writes rows that come some at a time as row groups of one size."""

    def __init__(self, writer: pq.ParquetWriter, schema: pa.Schema) -> None:
        self._writer = writer
        self._waiting = schema.empty_table()

    def add(self, rows: pa.Table) -> None:
        """Take the rows that come next."""
        self._waiting = pa.concat_tables([self._waiting, rows])
        while len(self._waiting) > _ROWS or self._waiting.nbytes > _BYTES:
            self._writer.write_table(self._waiting.slice(0, _ROWS).combine_chunks())
            self._waiting = self._waiting.slice(_ROWS)

    def end(self) -> None:
        """Write what is left."""
        self._writer.write_table(self._waiting.combine_chunks())


@contextmanager
def split_writer(path: Path, schema: pa.Schema) -> Iterator[SplitWriter]:
    """Write the file of a split, of any size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.table_writer(path, schema) as file:
        writer = SplitWriter(file, schema)
        yield writer
        writer.end()


def task_digest(data: Path, task: str) -> str:
    """SHA-256 over the files of a task's splits: what a cache of its losses belongs to."""
    return files.digest(data / task)
