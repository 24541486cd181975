"""Read the rows of a task's source, each with its file and line for messages."""

import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from automixalign.config.data import SourceSpec, TaskSpec
from automixalign.config.sources import GeneratedSource, HubSource, parse_task
from automixalign.data.reading.hub import open_hub
from automixalign.data.reading.local import open_local, refuse_keys
from automixalign.data.reading.row import OpenSource, Row
from automixalign.quickstart.synthetic import SYNTHETIC_TASKS, generate


@contextmanager
def open_source(
    task: TaskSpec, spec: SourceSpec, seed: int, columns: Collection[str] | None = None
) -> Iterator[OpenSource]:
    """Open one source of a task; a download is removed at the end of the context.

    Args:
        task: names the task in messages.
        spec: the source, one of the task's.
        seed: the seed of generated rows.
        columns: read these columns only, where they are stored apart from the others; None reads all. A dot
            leads into a nested column, which is read whole.

    Raises:
        DataError, StorageError: the source is missing, or has no such subset or split. Iterating raises a
            DataError for a file that ends in the middle or is of another kind; a single row that cannot be
            read is `Unreadable`.
    """
    source = parse_task(task.name, spec)
    with tempfile.TemporaryDirectory() as scratch:
        if isinstance(source, HubSource):
            yield open_hub(source, spec, columns)
            return
        refuse_keys(spec, "is not on the hub", ("revision",))
        if isinstance(source, GeneratedSource):
            refuse_keys(spec, "is generated")
            count = task.generated_rows(spec)
            yield OpenSource(spec.path, [lambda: _generate(source, count, seed)])
        else:
            yield open_local(source.fetch(Path(scratch)), spec, columns)


def _generate(source: GeneratedSource, count: int | None, seed: int) -> Iterator[Row]:
    rows = SYNTHETIC_TASKS[source.name].prompts if count is None else count
    for number, data in enumerate(generate(source.name, rows, seed), start=1):
        yield Row(f"{source.text}:{number}", data)
