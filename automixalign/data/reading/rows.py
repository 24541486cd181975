"""Read the rows of a task's source, each with its file and line for messages."""

import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from automixalign.config.data import LocationSpec
from automixalign.config.sources import GeneratedSource, HubSource, parse_data
from automixalign.data.reading.hub import open_hub
from automixalign.data.reading.local import open_local, refuse_keys
from automixalign.data.reading.row import OpenSource, Row
from automixalign.quickstart.synthetic import SYNTHETIC_TASKS, generate
from automixalign.system.errors import named


@contextmanager
def open_source(
    key: str,
    spec: LocationSpec,
    columns: Collection[str] | None = None,
    seed: int = 0,
    generated_rows: int | None = None,
) -> Iterator[OpenSource]:
    """Open a source of rows; a download is removed at the end of the context.

    Args:
        key: what messages call it: `task NAME` or `decontaminate`.
        spec: the source.
        seed: the seed of generated rows.
        generated_rows: how many rows to generate; by default all that there are.
        columns: read these columns only, where they are stored apart from the others; None reads all. A dot
            leads into a nested column, which is read whole.

    Raises:
        DataError, StorageError: the source is missing, or has no such subset or split. Iterating raises a
            DataError for a file that ends in the middle or is of another kind; a single row that cannot be
            read is `Unreadable`.
    """
    source = parse_data(key, spec)
    with tempfile.TemporaryDirectory() as scratch:
        with named(key):
            if isinstance(source, HubSource):
                opened = open_hub(source, spec, columns)
            else:
                refuse_keys(spec, "is not on the hub", ("revision",))
                if isinstance(source, GeneratedSource):
                    refuse_keys(spec, "is generated")
                    opened = OpenSource(spec.path, [lambda: _generate(source, generated_rows, seed)])
                else:
                    opened = open_local(source.fetch(Path(scratch)), spec, columns)
        yield opened


def _generate(source: GeneratedSource, count: int | None, seed: int) -> Iterator[Row]:
    rows = SYNTHETIC_TASKS[source.name].prompts if count is None else count
    for number, data in enumerate(generate(source.name, rows, seed), start=1):
        yield Row(f"{source.text}:{number}", data)
