"""Checkpoints of a training: where they lie, and which of them is whole.

The environment names a place in `AMA_CHECKPOINTS`: a folder (`ama run`: one within the run folder), or an `s3://`
prefix (see `stored_checkpoints`); without it a training keeps none. Each training has a folder there, named
after everything that determines its result, so that it finds its own checkpoints again and no other's:

    KEY/trajectory.jsonl      the log of the training that goes on
    KEY/checkpoint-STEP/      what transformers' Trainer saves (weights, optimiser, schedule, random state), and
        mixing.json           our part of the state, and where iterates are averaged `average.safetensors`
        trajectory.jsonl      the log up to this step
        seal.json             written last: every other file with size and SHA-256
    .KEY.gone                 what is being removed

A checkpoint without a seal that fits it was cut short or changed since: it is removed with a warning, and the
one before it is taken.
"""

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from automixalign.steps.step import current_step
from automixalign.storage import files, s3
from automixalign.storage.publication import Manifest, PublishedFile
from automixalign.system import shortages
from automixalign.system.errors import DamagedError, StorageError
from automixalign.system.schema import describe

PLACE = "AMA_CHECKPOINTS"
TRAJECTORY = "trajectory.jsonl"
STATE = "mixing.json"
SEAL = "seal.json"

_ARGUMENTS = "training_args.bin"
"""A pickle that transformers writes and nobody reads."""


class Checkpoints:
    """The checkpoints of one training in a folder of this machine.

    Several processes that share a training work in the same folder; only the first calls the methods.
    """

    kept_here = 2
    """So many the folder holds: the one before stays until the new one is sealed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._gone = folder.with_name(f".{folder.name}.gone")

    def open(self) -> None:
        """Make ready for the training.

        Raises:
            StorageError: nothing can be kept there.
        """
        shutil.rmtree(self._gone, ignore_errors=True)  # a kill cut its removal short
        with _named(self.folder, "cannot be made", "name another folder"):
            self.folder.mkdir(parents=True, exist_ok=True)

    def last_whole(self) -> Path | None:
        """The latest whole checkpoint. Those after it are removed, with a warning.

        Raises:
            StorageError: whether a checkpoint is whole cannot be told.
        """
        for name in _latest_first(self._names()):
            try:
                return self._take(name)
            except DamagedError as damage:
                current_step().warn(
                    f"{self._title(name)} is passed over for the checkpoint before it, and removed: {damage}"
                )
                self._discard(name)
        return None

    def add(self, checkpoint: Path) -> None:
        """Seal a checkpoint that every process has written its part of."""
        (checkpoint / _ARGUMENTS).unlink(missing_ok=True)
        found = {
            name: PublishedFile(size=file.stat().st_size, sha256=files.digest(file))
            for name, file in _files(checkpoint).items()
        }
        seal = Manifest(run=self.folder.name, files=found)
        files.write_text(checkpoint / SEAL, seal.model_dump_json(indent=2))

    def close(self) -> None:
        """Leave the checkpoints of a training that has failed to the one that is started in its place."""

    def remove(self) -> None:
        """Remove all of it, for the training has ended well: at once, so that nobody finds half of it."""
        self.folder.rename(self._gone)
        shutil.rmtree(self._gone)

    def _names(self) -> Iterable[str]:
        return [place.name for place in self.folder.iterdir()]

    def _title(self, name: str) -> str:
        return str(self.folder / name)

    def _take(self, name: str) -> Path:
        """The checkpoint in this folder, if it is whole; a `DamagedError` if it is not."""
        checkpoint = self.folder / name
        with _named(checkpoint, "cannot be read", "make it readable, or remove it"):
            sealed, found = checkpoint / SEAL, _files(checkpoint)
            text = sealed.read_bytes() if sealed.is_file() else None
            seal = read_seal(text, {name: file.stat().st_size for name, file in found.items()})
            for file, entry in seal.files.items():
                if files.digest(found[file]) != entry.sha256:
                    raise DamagedError(f"{file} is not what was sealed")
        return checkpoint

    def _discard(self, name: str) -> None:
        shutil.rmtree(self.folder / name)


@contextmanager
def of_training(place: str | None, key: str, scratch: Path) -> Iterator[Checkpoints]:
    """The checkpoints of the training `key`, removed when it has ended well.

    Args:
        place: a folder or an `s3://` prefix for the checkpoints of all trainings, None to keep none.
        key: names everything that determines the training.
        scratch: a folder that the processes of the training share and that is gone afterwards; the training
            works in it where nothing of this machine is to be kept.

    Raises:
        StorageError: nothing can be kept at that place.
    """
    kept = _at(place, key, scratch)
    first = os.environ.get("RANK", "0") == "0"
    if first:
        kept.open()
    try:
        yield kept
    except BaseException:
        if first:
            kept.close()
        raise
    if first:
        kept.remove()


def place(every: int) -> str | None:
    """Where a training with a checkpoint `every` so many steps keeps them; None if it keeps none."""
    return os.environ.get(PLACE) or None if every else None


def _at(place: str | None, key: str, scratch: Path) -> Checkpoints:
    if place is None:
        return Checkpoints(scratch / key)
    if s3.is_uri(place):
        from automixalign.training.stored_checkpoints import StoredCheckpoints

        return StoredCheckpoints(scratch / key, f"{place.rstrip('/')}/{key}")
    return Checkpoints(Path(place) / key)


def read_seal(text: bytes | None, sizes: Mapping[str, int]) -> Manifest:
    """The seal of a checkpoint, if its files (name -> bytes) are those that were sealed.

    Raises:
        DamagedError: there is no seal, it is none of ours, or a file is missing, of another size or not in it.
    """
    if text is None:
        raise DamagedError("it was not finished")
    try:
        seal = Manifest.model_validate_json(text)
    except ValidationError as error:
        raise DamagedError(f"its {SEAL} is garbled: {describe(error)}") from error
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
def saved(checkpoint: Path) -> Iterator[None]:
    """While a checkpoint is saved: leave nothing of it if that fails; a full disk then has room for the error.

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
def _named(place: Path, what: str, advice: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{place} {what}: {error}; {advice}") from error


def _latest_first(names: Iterable[str]) -> list[str]:
    found = {name: re.fullmatch(r"checkpoint-(\d+)", name) for name in names}
    steps = {name: int(match[1]) for name, match in found.items() if match}
    return sorted(steps, key=lambda name: steps[name], reverse=True)


def _files(checkpoint: Path) -> dict[str, Path]:
    """Every file of a checkpoint by its name in it, but for its seal and hidden ones."""
    found = {file.relative_to(checkpoint): file for file in sorted(checkpoint.rglob("*")) if file.is_file()}
    return {
        name.as_posix(): file
        for name, file in found.items()
        if name != Path(SEAL) and not any(part.startswith(".") for part in name.parts)
    }
