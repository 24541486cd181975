"""Rows that come in one order and are wanted in another, more of them than memory holds."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

_PLACE = "place"
_BYTES, _FILE_BYTES = 16 << 20, 8 << 20
"""Of the rows that lie in memory at a time, about, when they come and when they go."""

Places = npt.NDArray[np.int32]


class OrderedRows:
    """Takes rows in any order and gives them in the order of their places, by way of a folder.

    Every file of the folder holds the rows of so many places that follow each other.

    Args:
        row_bytes: the size of a row, about.
    """

    def __init__(self, folder: Path, schema: pa.Schema, row_bytes: float) -> None:
        folder.mkdir()
        self._folder, self.schema = folder, schema
        self._rows_a_file = max(1, int(_FILE_BYTES / row_bytes))
        self._waiting: list[tuple[pa.RecordBatch, Places]] = []
        self._bytes = 0
        self._files: set[int] = set()

    def add(self, rows: pa.RecordBatch, places: Places) -> None:
        """Take rows, each with the place that it alone will have."""
        self._waiting.append((rows, places))
        self._bytes += rows.nbytes
        if self._bytes >= _BYTES:
            self._put_away()

    def __iter__(self) -> Iterator[pa.Table]:
        """All rows in the order of their places, some at a time; what was read is gone."""
        if self._waiting:
            self._put_away()
        for number in sorted(self._files):
            file = self._folder / str(number)
            yield self._read(file)
            file.unlink()

    def _put_away(self) -> None:
        places = np.concatenate([places for _, places in self._waiting])
        rows = pa.Table.from_batches([rows for rows, _ in self._waiting])
        self._waiting, self._bytes = [], 0
        order = np.argsort(places)
        rows = rows.append_column(_PLACE, pa.array(places)).take(order).combine_chunks()
        files, starts = np.unique(places[order] // self._rows_a_file, return_index=True)
        for number, start, end in zip(files.tolist(), starts, [*starts[1:], len(order)], strict=True):
            self._files.add(number)
            with (self._folder / str(number)).open("ab") as out:
                for batch in rows.slice(start, end - start).to_batches():
                    out.write(batch.serialize())

    def _read(self, file: Path) -> pa.Table:
        schema = self.schema.append(pa.field(_PLACE, pa.int32()))
        batches = []
        with pa.OSFile(str(file)) as source:
            while source.tell() < source.size():
                batches.append(pa.ipc.read_record_batch(pa.ipc.read_message(source), schema))
        rows = pa.Table.from_batches(batches)
        return rows.take(np.argsort(rows.column(_PLACE).to_numpy())).drop_columns(_PLACE)
