"""Choose where a training keeps its checkpoints, and remove them after its success."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from automixalign.steps.jobs.job import rank
from automixalign.storage import s3
from automixalign.training.checkpoints.folder import CHECKPOINTS_VARIABLE, CheckpointStore
from automixalign.training.checkpoints.s3 import S3CheckpointStore


def checkpoints_location(*intervals: float) -> str | None:
    """The folder or `s3://` prefix for checkpoints; None if the run keeps none.

    Args:
        intervals: steps and minutes between two checkpoints; 0 for none.
    """
    return os.environ.get(CHECKPOINTS_VARIABLE) or None if any(intervals) else None


@contextmanager
def checkpoint_store(location: str | None, key: str, scratch: Path) -> Iterator[CheckpointStore]:
    """The checkpoints of one training. They stay until `remove_checkpoints`.

    Args:
        location: a folder or an `s3://` prefix for the checkpoints of all trainings; None to keep none.
        key: names everything that determines the training.
        scratch: a temporary folder that the processes of the training share. The training works in it unless
            `location` is a folder.

    Raises:
        StorageError: `location` cannot be written.
    """
    is_first = rank() == 0
    store = _store(location, key, scratch, is_first)
    if is_first:
        store.open()
    try:
        yield store
    finally:
        if is_first:
            store.close()


def remove_checkpoints(path: str | None) -> None:
    """Remove the checkpoints of a training when all of its results are written.

    Args:
        path: their folder or `s3://` prefix, `LOCATION/KEY`; None if the training kept none.
    """
    if path is not None:
        location, _, key = path.rpartition("/")
        _store(location, key, Path(tempfile.gettempdir()), is_first=True).remove()


def _store(location: str | None, key: str, scratch: Path, is_first: bool) -> CheckpointStore:
    if location is not None and s3.is_uri(location):
        return S3CheckpointStore(scratch / key, f"{location.rstrip('/')}/{key}", is_first)
    return CheckpointStore((Path(location) if location else scratch) / key, is_first)
