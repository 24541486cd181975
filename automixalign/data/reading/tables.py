"""Read rows from Parquet files, Arrow files and the tables of `datasets`."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from automixalign.data.reading.row import Row
from automixalign.data.reading.streams import naming, open_table

BATCH_ROWS = 256
"""How many rows are in memory as Python objects at a time."""

_ARROW_MAGIC = b"ARROW1"
"""The beginning of an Arrow file in the IPC file format; the stream format has none."""


def read_parquet(path: Path, name: str, columns: Collection[str] | None) -> Iterator[Row]:
    """Yield the rows of a Parquet file, without decoding images or other media.

    Args:
        columns: read these columns only, as far as they exist; a dot leads into a nested one. None reads all.

    Raises:
        DataError: the file is broken.
    """
    with naming(name, "Parquet file"), open_table(path) as opened:
        file = pq.ParquetFile(opened)
        names = choose(file.schema_arrow.names, columns)
        yield from number_rows(file.iter_batches(batch_size=BATCH_ROWS, columns=names), name)


def read_arrow(paths: Iterable[Path], name: str, columns: Collection[str] | None) -> Iterator[Row]:
    """Yield the rows of Arrow files, in the file format or the stream format, as of one table.

    Raises:
        DataError: a file is broken.
    """
    with naming(name, "Arrow file"):
        yield from number_rows((batch for path in paths for batch in _batches(path, columns)), name)


def _batches(path: Path, columns: Collection[str] | None) -> Iterator[pa.RecordBatch]:
    with open_table(path) as opened:
        is_file = opened.read(len(_ARROW_MAGIC)) == _ARROW_MAGIC
        opened.seek(0)
        reader = pa.ipc.open_file(opened) if is_file else pa.ipc.open_stream(opened)
        names = choose(reader.schema.names, columns)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
        for batch in (batch.select(names) for batch in batches):
            batch.validate(full=True)  # a broken offset would end the process
            for start in range(0, len(batch), BATCH_ROWS):
                yield batch.slice(start, BATCH_ROWS)


def choose(names: list[str], columns: Collection[str] | None) -> list[str]:
    """The columns of a table to read.

    Raises:
        ValueError: the table has two columns of one name.
    """
    if len(set(names)) < len(names):
        raise ValueError(f"two columns have one name: {', '.join(names):.200}")
    if columns is None:
        return names
    wanted = {*columns, *(column.partition(".")[0] for column in columns)}
    return [name for name in names if name in wanted]


def number_rows(batches: Iterable[pa.RecordBatch], name: str) -> Iterator[Row]:
    """Yield the rows of a table as `NAME:NUMBER`, from 1."""
    number = 0
    for batch in batches:
        decoders = {field.name: decoder for field in batch.schema if (decoder := _json_decoder(field.type))}
        for data in batch.to_pylist():
            number += 1
            for column, decoder in decoders.items():
                data[column] = decoder(data[column])
            yield Row(f"{name}:{number}", data)


def _json_decoder(kind: pa.DataType) -> Callable[[Any], Any] | None:
    """What decodes the values of a type that holds JSON, as `datasets` stores values of mixed types."""
    if isinstance(kind, pa.JsonType):
        return lambda text: None if text is None else json.loads(text)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        item = _json_decoder(kind.value_type)
        return item and (lambda values: None if values is None else [item(value) for value in values])
    if pa.types.is_struct(kind):
        fields = {field.name: decoder for field in kind if (decoder := _json_decoder(field.type))}
        if fields:
            return lambda value: (
                value and value | {name: decoder(value[name]) for name, decoder in fields.items()}
            )
    return None
