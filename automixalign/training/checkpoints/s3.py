"""Checkpoints below an `s3://` prefix, for a training whose machine may be gone when it is started again.

The training works in a temporary folder. Meanwhile each sealed checkpoint is uploaded to
PREFIX/KEY/checkpoint-STEP/, its seal last, so that a reader recognises a complete one. Two checkpoints are
kept; the newer one may still be uploading.

S3 must answer when the training begins. A later failure of S3 only causes a warning. A checkpoint whose upload
has not begun when the next one is written is never uploaded. So the temporary folder holds two checkpoints: one
that is uploading, and one that is being written or waits.
"""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import cached_property
from pathlib import Path
from threading import Lock

from automixalign.steps.step import current_step
from automixalign.storage import files, s3
from automixalign.storage.publication import Manifest, check_writable
from automixalign.system.errors import StorageError
from automixalign.training.checkpoints.folder import SEAL, CheckpointStore, read_seal


class S3CheckpointStore(CheckpointStore):
    """The checkpoints of one training below an `s3://` prefix.

    Args:
        folder: where the training works, on this machine.
        uri: the prefix; nothing else may use it.
        is_first: whether this is the first process.
    """

    def __init__(self, folder: Path, uri: str, is_first: bool = True) -> None:
        super().__init__(folder, is_first)
        self.uri = uri
        self._sizes: dict[str, int] = {}
        self._uploaded: str | None = None
        """The latest checkpoint that is complete in S3."""
        self._waiting: str | None = None
        """The checkpoint whose upload has not begun."""
        self._uploading: str | None = None
        self._lock = Lock()
        """Guards `_waiting` and `_uploading`."""
        self._uploads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="uploads")
        self._upload: Future[None] | None = None

    @cached_property
    def _prefix(self) -> s3.Prefix:
        return s3.Prefix(self.uri)

    def open(self) -> None:
        super().open()
        check_writable(self.uri)
        self._sizes = self._prefix.sizes()

    def check(self) -> None:
        super().check()
        if self._upload is not None and self._upload.done():
            self._upload.result()  # raises an error that does not come from S3

    def close(self) -> None:
        super().close()
        self._uploads.shutdown()
        if self._upload is not None:
            self._upload.result()

    def remove(self) -> None:
        try:
            self._discard_all_but(None)
        except StorageError as error:
            current_step().warn(f"{self.uri} is not needed any more, but could not be removed: {error}")

    def _names(self) -> Iterable[str]:
        return {file.partition("/")[0] for file in self._sizes}

    def _title(self, name: str) -> str:
        return f"{self.uri}/{name}"

    def _fetch(self, name: str) -> Path:
        """Download a checkpoint; a `DamagedError` if it is not complete."""
        inside = f"{name}/"
        sizes = {file.removeprefix(inside): n for file, n in self._sizes.items() if file.startswith(inside)}
        seal = read_seal(self._prefix.read(inside + SEAL), sizes)
        with files.replacing(self.folder / name) as new:
            for file, entry in seal.files.items():
                self._prefix.fetch(inside + file, new / file, entry.sha256)
            files.write_text(new / SEAL, seal.model_dump_json(indent=2))
        self._uploaded = name
        return self.folder / name

    def _discard(self, name: str) -> None:
        """Delete a checkpoint, its seal first, so that nobody uses a part of it."""
        inside = [file for file in self._sizes if file == name or file.startswith(f"{name}/")]
        for file in sorted(inside, key=lambda file: file != f"{name}/{SEAL}"):
            self._prefix.delete(file)

    def _discard_all_but(self, name: str | None) -> None:
        self._sizes = self._prefix.sizes()
        # The latest complete one goes last: a training that is killed meanwhile still resumes from it.
        names = set(self._names()) - {name}
        for other in sorted(names, key=lambda name: (f"{name}/{SEAL}" in self._sizes, len(name), name)):
            self._discard(other)

    def _make_room(self, checkpoint: Path) -> None:
        """Remove the checkpoints before this one from the folder, but the one that is uploading."""
        with self._lock:
            self._waiting = None
            uploading = [self._uploading] if self._uploading else []
        self._remove_before(checkpoint, *uploading)

    def _seal(self, checkpoint: Path) -> None:
        super()._seal(checkpoint)
        with self._lock:
            self._waiting = checkpoint.name
        self._upload = self._uploads.submit(copy_context().run, self._send, checkpoint.name)

    def _send(self, name: str) -> None:
        """Upload a checkpoint, unless a newer one has replaced it."""
        with self._lock:
            if self._waiting != name:
                return
            self._waiting, self._uploading = None, name
        try:
            self._store(name, self.folder / name)
        except StorageError as error:
            resume = f"resume from {self._uploaded}" if self._uploaded else "start from the beginning"
            current_step().warn(
                f"{self._title(name)} could not be stored: {error}. The training continues; if it is killed "
                f"before the next checkpoint is stored, it will {resume}"
            )
        finally:
            self._uploading = None

    def _store(self, name: str, checkpoint: Path) -> None:
        self._discard_all_but(self._uploaded)
        text = (checkpoint / SEAL).read_bytes()
        for file, entry in Manifest.model_validate_json(text).files.items():
            self._prefix.upload(f"{name}/{file}", checkpoint / file, entry.size, entry.sha256)
        self._prefix.write(f"{name}/{SEAL}", text)
        self._uploaded = name
