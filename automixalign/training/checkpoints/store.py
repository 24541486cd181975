"""Choose where a training keeps its checkpoints, and remove them after its success."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from automixalign.storage import s3
from automixalign.training.checkpoints.folder import CHECKPOINTS_VARIABLE, CheckpointStore
from automixalign.training.checkpoints.s3 import S3CheckpointStore


def checkpoints_location(every: int) -> str | None:
    """The folder or `s3://` prefix for checkpoints; None if the run keeps none.

    Args:
        every: optimiser steps between two checkpoints; 0 for none.
    """
    return os.environ.get(CHECKPOINTS_VARIABLE) or None if every else None


@contextmanager
def checkpoint_store(location: str | None, key: str, scratch: Path) -> Iterator[CheckpointStore]:
    """The checkpoints of one training, removed after its success.

    Args:
        location: a folder or an `s3://` prefix for the checkpoints of all trainings; None to keep none.
        key: names everything that determines the training.
        scratch: a temporary folder that the processes of the training share. The training works in it unless
            `location` is a folder.

    Raises:
        StorageError: `location` cannot be written.
    """
    store = _store(location, key, scratch)
    is_first_process = os.environ.get("RANK", "0") == "0"
    if is_first_process:
        store.open()
    try:
        yield store
    except BaseException:
        if is_first_process:
            store.close()
        raise
    if is_first_process:
        store.remove()


def _store(location: str | None, key: str, scratch: Path) -> CheckpointStore:
    if location is None:
        return CheckpointStore(scratch / key)
    if s3.is_uri(location):
        return S3CheckpointStore(scratch / key, f"{location.rstrip('/')}/{key}")
    return CheckpointStore(Path(location) / key)
