"""Checkpoints below an `s3://` prefix, for a training whose machine may be gone when it is started again.

The training works in a passing folder. Each checkpoint that was sealed there is uploaded to
PREFIX/KEY/checkpoint-STEP/ while the training goes on, its seal last, so that a reader can tell a whole one
from one that is on its way. Two are there, the last of them perhaps on its way.

They are an insurance: S3 has to be there when the training begins, where it is tried out, but what fails later
is warned about and the training goes on. A checkpoint that is overtaken by the next one before its upload has
begun is left out.
"""

import shutil
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from threading import Lock

from automixalign.steps.step import current_step
from automixalign.storage import files, s3
from automixalign.storage.publication import Manifest, check_writable
from automixalign.system.errors import StorageError
from automixalign.training.checkpoints import SEAL, Checkpoints, read_seal


class StoredCheckpoints(Checkpoints):
    """The checkpoints of one training below an `s3://` prefix.

    Args:
        folder: where the training works, on this machine.
        uri: the prefix; all of it belongs to this training.
    """

    kept_here = 1  # those before it are stored

    def __init__(self, folder: Path, uri: str) -> None:
        super().__init__(folder)
        self.uri = uri
        self._outbox = folder / ".outbox"
        """Links to what is on its way and what waits: transformers removes its older checkpoints meanwhile."""
        self._sizes: dict[str, int] = {}
        self._stored: str | None = None
        """The latest that is stored whole, as far as this process knows."""
        self._waiting: str | None = None
        """The one whose upload has not begun."""
        self._ended = False
        self._lock = Lock()
        """Held by whoever decides what becomes of the one that waits."""
        self._uploads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._upload: Future[None] | None = None

    def open(self) -> None:
        super().open()
        check_writable(self.uri)
        self._prefix = s3.Prefix(self.uri)
        self._sizes = self._prefix.sizes()

    def add(self, checkpoint: Path) -> None:
        super().add(checkpoint)
        if self._upload is not None and self._upload.done():
            self._upload.result()  # raises what is no fault of S3
        with self._lock:
            self._leave_out()
            files.link(checkpoint, self._outbox / checkpoint.name)
            self._waiting = checkpoint.name
        self._upload = self._uploads.submit(copy_context().run, self._send, checkpoint.name)

    def close(self) -> None:
        self._uploads.shutdown()
        if self._upload is not None:
            self._upload.result()

    def remove(self) -> None:
        self._ended = True
        with self._lock:
            self._leave_out()
        self.close()
        try:
            self._remove_all_but(self._stored)
            # The latest goes last: whoever is killed before goes on from it.
            self._remove_all_but(None)
        except StorageError as error:
            current_step().warn(f"{self.uri} is not needed any more, but could not be removed: {error}")
        super().remove()

    def _names(self) -> Iterable[str]:
        return {file.partition("/")[0] for file in self._sizes}

    def _title(self, name: str) -> str:
        return f"{self.uri}/{name}"

    def _take(self, name: str) -> Path:
        """Fetch a checkpoint, if it is whole."""
        inside = f"{name}/"
        sizes = {file.removeprefix(inside): n for file, n in self._sizes.items() if file.startswith(inside)}
        seal = read_seal(self._prefix.read(inside + SEAL), sizes)
        with files.replacing(self.folder / name) as new:
            for file, entry in seal.files.items():
                self._prefix.fetch(inside + file, new / file, entry.sha256)
            files.write_text(new / SEAL, seal.model_dump_json(indent=2))
        self._stored = name
        return self.folder / name

    def _discard(self, name: str) -> None:
        """Delete a checkpoint, the seal first: half of it is none."""
        inside = [file for file in self._sizes if file == name or file.startswith(f"{name}/")]
        for file in sorted(inside, key=lambda file: file != f"{name}/{SEAL}"):
            self._prefix.delete(file)

    def _remove_all_but(self, *names: str | None) -> None:
        self._sizes = self._prefix.sizes()
        for name in sorted(set(self._names()) - set(names)):
            self._discard(name)

    def _leave_out(self) -> None:
        """Forget the one that waits."""
        if self._waiting is not None:
            shutil.rmtree(self._outbox / self._waiting)
            self._waiting = None

    def _send(self, name: str) -> None:
        """Upload a checkpoint, unless it was left out."""
        with self._lock:
            if self._waiting != name:
                return
            self._waiting = None
        place = self._outbox / name
        try:
            self._store(name, place)
        except StorageError as error:
            again = f"go on from {self._stored}" if self._stored else "begin anew"
            current_step().warn(
                f"{self._title(name)} could not be stored: {error}. The training goes on; killed before the "
                f"next checkpoint is stored, it would {again}"
            )
        finally:
            shutil.rmtree(place)

    def _store(self, name: str, place: Path) -> None:
        self._remove_all_but(self._stored)
        text = (place / SEAL).read_bytes()
        for file, entry in Manifest.model_validate_json(text).files.items():
            if self._ended:
                return
            self._prefix.upload(f"{name}/{file}", place / file, entry.size, entry.sha256)
        self._prefix.write(f"{name}/{SEAL}", text)
        self._stored = name
