"""Checkpoints of a training: where they lie, and which of them is whole.

The environment names a folder in `AMA_CHECKPOINTS` (`ama run` one within the run folder); without it a training
keeps none. Each training has a folder there, named after everything that determines its result, so that it
finds its own checkpoints again and no other's. A checkpoint is what transformers' Trainer saves (weights,
optimiser, schedule, random state) plus our part; the *seal*, written last, holds our part and the digests of
all other files.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from automixalign import files
from automixalign.errors import TrainingError

FOLDER = "AMA_CHECKPOINTS"
TRAJECTORY = "trajectory.jsonl"
SEAL = "mixing.json"


@contextmanager
def training_folder(key: str) -> Iterator[Path]:
    """The folder of the training `key`, removed when the training has ended well; a passing one without any."""
    if FOLDER not in os.environ:
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)
        return
    folder = Path(os.environ[FOLDER]) / key
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    if os.environ.get("RANK", "0") == "0":
        shutil.rmtree(folder)


def kept() -> bool:
    """Whether this training keeps checkpoints."""
    return FOLDER in os.environ


def seal(checkpoint: Path, state: Mapping[str, Any]) -> None:
    """Declare a checkpoint whole, with our part of the state."""
    files.write_json(checkpoint / SEAL, {"state": state, "files": _digests(checkpoint)})


def read_state(checkpoint: Path) -> Any:
    """Our part of a sealed checkpoint."""
    return files.read_json(checkpoint / SEAL)["state"]


def last_whole(folder: Path) -> Path | None:
    """The latest checkpoint that was sealed and has not changed since; what a kill cut short is passed over."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return next((checkpoint for checkpoint in reversed(found) if _is_whole(checkpoint)), None)


def _is_whole(checkpoint: Path) -> bool:
    sealed = checkpoint / SEAL
    return sealed.exists() and files.read_json(sealed)["files"] == _digests(checkpoint)


def _digests(checkpoint: Path) -> dict[str, str]:
    found = (file for file in checkpoint.rglob("*") if file.is_file() and file.name != SEAL)
    return {file.relative_to(checkpoint).as_posix(): files.digest(file) for file in sorted(found)}


def keep_lines(trajectory: Path, count: int) -> None:
    """Cut what a log holds beyond the steps of a checkpoint, also a line that a kill cut short.

    Raises:
        TrainingError: there are fewer lines than steps were done.
    """
    text = trajectory.read_text(encoding="utf-8", errors="replace") if trajectory.exists() else ""
    lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    if len(lines) < count:
        raise TrainingError(
            f"{trajectory}: has {len(lines)} lines, but the checkpoint {count} steps; remove the folder"
        )
    files.write_text(trajectory, "".join(lines[:count]))
