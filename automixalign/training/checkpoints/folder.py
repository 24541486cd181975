"""The checkpoints of a training in a folder, and the seal by which a complete one is recognised.

The name of the folder depends on everything that determines the result of the training. So a training that is
started again finds its own checkpoints and no other's:

    KEY/trajectory.jsonl      the log of the running training
    KEY/checkpoint-STEP/
        state-N.safetensors   the trained weights and the optimiser's state that process N holds
        average.safetensors   the average of the iterates, if there is one
        best.safetensors      the best policy so far, if one is kept
        mixing.json           the mixer, the draws, the schedule and the number of averaged iterates
        rng_state*.pth        the random state of each process
        trainer_state.json    the state of transformers' Trainer
        trajectory.jsonl      the log up to this step
        seal.json             written last: size and SHA-256 of every other file
    .KEY.removed              a folder that is being removed

A checkpoint that does not match its seal is incomplete or altered. It is removed with a warning, and the one
before it is used.

The training's thread writes a checkpoint, or only copies it to memory. Another thread does the rest: the
training goes on meanwhile. A folder holds two checkpoints: the last complete one, and either the one before it
or the one that is being written.
"""

import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path

from pydantic import ValidationError

from automixalign.steps.step import current_step
from automixalign.storage import files
from automixalign.storage.publication import Manifest, PublishedFile
from automixalign.system import shortages
from automixalign.system.errors import DamagedError, StorageError
from automixalign.system.schema import describe

CHECKPOINTS_VARIABLE = "AMA_CHECKPOINTS"
"""Names the folder or `s3://` prefix of all trainings' checkpoints; without it, a training keeps none."""
TRAJECTORY = "trajectory.jsonl"
STATE = "mixing.json"
SEAL = "seal.json"

_POLL_SECONDS = 0.1


class CheckpointStore:
    """The checkpoints of one training in a folder of this machine.

    Processes that share a training share the folder. All of them call `add`, `check` and `wait`; only the first
    one calls the other methods.

    Args:
        folder: the folder.
        is_first: whether this is the first process.
    """

    def __init__(self, folder: Path, is_first: bool = True) -> None:
        self.folder, self.is_first = folder, is_first
        self._removed = folder.with_name(f".{folder.name}.removed")
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._unfinished: Future[None] | None = None
        """The checkpoint that the thread works on."""

    def open(self) -> None:
        """Prepare the folder.

        Raises:
            StorageError: it cannot be made.
        """
        shutil.rmtree(self._removed, ignore_errors=True)  # a kill interrupted its removal
        with _explain_os_errors(self.folder, "cannot be made", "name another folder"):
            self.folder.mkdir(parents=True, exist_ok=True)

    def last_complete(self) -> Path | None:
        """The latest complete checkpoint. Later ones are removed with a warning.

        Raises:
            StorageError: a checkpoint cannot be read, so it may be complete.
        """
        for name in _latest_first(self._names()):
            try:
                return self._fetch(name)
            except DamagedError as damage:
                current_step().warn(
                    f"{self._title(name)} is damaged: {damage}. It is removed; the checkpoint before it is used"
                )
                self._discard(name)
        return None

    def add(
        self,
        checkpoint: Path,
        write: Callable[[], None],
        parts: Sequence[str] = (),
        in_background: bool = False,
    ) -> None:
        """Write this process's part of a checkpoint; the first process then seals the checkpoint in a thread.

        Args:
            checkpoint: its folder, which holds all other files.
            write: writes the part.
            parts: the files of `checkpoint` that other processes may still be writing.
            in_background: call `write` in the thread, too.

        Raises:
            StorageError: the disk is full, now or for the checkpoint before.
        """
        self.wait()
        if not in_background:
            self._write(checkpoint, write)
        self._unfinished = self._thread.submit(
            copy_context().run, self._finish, checkpoint, write if in_background else None, parts
        )

    def check(self) -> None:
        """Raise the error of the thread, if it has one."""
        if self._unfinished is not None and self._unfinished.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last checkpoint is complete, and raise the error of the thread, if it has one."""
        unfinished, self._unfinished = self._unfinished, None
        if unfinished is not None:
            unfinished.result()

    def _finish(self, checkpoint: Path, write: Callable[[], None] | None, parts: Sequence[str]) -> None:
        if write is not None:
            self._write(checkpoint, write)
        if not self.is_first:
            return
        with saving(checkpoint):
            while not all((checkpoint / part).exists() for part in parts):
                time.sleep(_POLL_SECONDS)
            self._seal(checkpoint)

    def _write(self, checkpoint: Path, write: Callable[[], None]) -> None:
        if not self.is_first:
            write()
            return
        with saving(checkpoint):
            self._make_room(checkpoint)
            write()

    def _make_room(self, checkpoint: Path) -> None:
        """Remove the checkpoints before this one from the folder, but the last complete one."""
        complete = _latest_first(path.parent.name for path in self.folder.glob(f"*/{SEAL}"))
        self._remove_before(checkpoint, *complete[:1])

    def _remove_before(self, checkpoint: Path, *kept: str) -> None:
        """Remove all checkpoints before one. Another process may have begun a later one."""
        names = _latest_first(path.name for path in self.folder.iterdir())
        for name in names[names.index(checkpoint.name) + 1 :]:
            if name not in kept:
                shutil.rmtree(self.folder / name)

    def _seal(self, checkpoint: Path) -> None:
        entries = {
            name: PublishedFile(size=path.stat().st_size, sha256=files.digest(path))
            for name, path in _files(checkpoint).items()
        }
        seal = Manifest(run=self.folder.name, files=entries)
        files.write_text(checkpoint / SEAL, seal.model_dump_json(indent=2))

    def close(self) -> None:
        """Keep the checkpoints of a failed training for its next start."""
        self.wait()

    def remove(self) -> None:
        """Remove the checkpoints of a successful training. The rename hides all of them at once."""
        self.folder.rename(self._removed)
        shutil.rmtree(self._removed)

    def _names(self) -> Iterable[str]:
        return [path.name for path in self.folder.iterdir()]

    def _title(self, name: str) -> str:
        return str(self.folder / name)

    def _fetch(self, name: str) -> Path:
        """Path of a checkpoint in the folder; a `DamagedError` if it is not complete."""
        checkpoint = self.folder / name
        with _explain_os_errors(checkpoint, "cannot be read", "make it readable, or remove it"):
            seal_file, paths = checkpoint / SEAL, _files(checkpoint)
            text = seal_file.read_bytes() if seal_file.is_file() else None
            seal = read_seal(text, {file: path.stat().st_size for file, path in paths.items()})
            for file, entry in seal.files.items():
                if files.digest(paths[file]) != entry.sha256:
                    raise DamagedError(f"{file} is not what was sealed")
        return checkpoint

    def _discard(self, name: str) -> None:
        shutil.rmtree(self.folder / name)


def read_seal(text: bytes | None, sizes: Mapping[str, int]) -> Manifest:
    """The seal of a checkpoint whose files match it.

    Args:
        text: the content of the seal file; None if there is no such file.
        sizes: bytes of each file of the checkpoint.

    Raises:
        DamagedError: the seal is missing or invalid; or a file is missing, of another size, or not in it.
    """
    if text is None:
        raise DamagedError("it was not finished")
    try:
        seal = Manifest.model_validate_json(text)
    except ValidationError as error:
        raise DamagedError(f"its {SEAL} is invalid: {describe(error)}") from error
    sealed = {name: entry.size for name, entry in seal.files.items()}
    for name in sorted({STATE, *sealed, *sizes} - {SEAL}):
        if name not in sizes:
            raise DamagedError(f"{name} is missing")
        if name not in sealed:
            raise DamagedError(f"{name} does not belong to it")
        if sizes[name] != sealed[name]:
            raise DamagedError(f"{name} has {sizes[name]} bytes, not {sealed[name]}")
    return seal


@contextmanager
def saving(checkpoint: Path) -> Iterator[None]:
    """Remove a checkpoint that cannot be saved completely; a full disk then has space for the error's log.

    Raises:
        StorageError: the disk is full.
    """
    try:
        with shortages.name_full_disk(checkpoint):
            yield
    except BaseException:
        shutil.rmtree(checkpoint, ignore_errors=True)
        raise


@contextmanager
def _explain_os_errors(path: Path, problem: str, advice: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path} {problem}: {error}; {advice}") from error


def _latest_first(names: Iterable[str]) -> list[str]:
    matches = {name: re.fullmatch(r"checkpoint-(\d+)", name) for name in names}
    steps = {name: int(match[1]) for name, match in matches.items() if match}
    return sorted(steps, key=lambda name: steps[name], reverse=True)


def _files(checkpoint: Path) -> dict[str, Path]:
    """The files of a checkpoint by their names in it, without its seal and hidden ones."""
    paths = {path.relative_to(checkpoint).as_posix(): path for path in files.list_files(checkpoint)}
    return {name: path for name, path in paths.items() if name != SEAL}
