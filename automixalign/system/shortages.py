"""Too little disk or memory: one error class for the many errors that Python and the libraries raise.

torch, safetensors, tokenizers, Arrow and SQLite raise errors of their own classes, most without an errno. torch
also hides the cause when it cannot write a checkpoint. Only the texts of these errors can be recognised.
"""

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from automixalign.system.errors import AutoMixAlignError, ResourceError, StorageError

_FULL_DISK = re.compile(
    "no space left on device|disk quota exceeded|file too large|database or disk is full"
    r"|inline_container\.cc|iostream error",  # the last two: torch.save, whatever the reason
    re.IGNORECASE,
)
_FULL_DISK_ERRNO = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OUT_OF_MEMORY = re.compile(
    r"(can't|cannot|unable to|failed to) allocate|out of memory|std::bad_alloc|can't start new thread",
    re.IGNORECASE,
)
_DISK_ADVICE = (
    "free some space (in a container: raise its limit), or name a folder on another disk, and start again"
)
_NEARLY_FULL_BYTES = 1 << 20
_FOLDER_VARIABLES = ("AMA_LOGS", "AMA_SPOOL", "AMA_CHECKPOINTS")

_TRAINING = (
    "training.micro_batch_size, training.processes or max_length, or set training.gradient_checkpointing"
)
_SCORING = "evaluation.batch_size or max_length"
_WHAT_TO_LOWER = {
    "prepare_data": "limit of each task, or name a smaller base model",
    "reference_logps": _SCORING,
    "specialist_losses": _SCORING,
    "evaluate": _SCORING,
    "benchmark": _SCORING,
    "train_specialist": _TRAINING,
    "train_generalist": _TRAINING,
}


@contextmanager
def name_full_disk(path: Path) -> Iterator[None]:
    """Raise a `StorageError` that names `path` if its disk is full while the block writes it."""
    try:
        yield
    except Exception as error:
        if isinstance(error, AutoMixAlignError) or not is_full_disk_error(error):
            raise
        raise _full_disk(error, str(path)) from error


@contextmanager
def name_shortages(title: str, stage: str) -> Iterator[None]:
    """Raise an error that names the shortage, unless the block raised such an error already.

    Args:
        title: of the stage or process, for the message.
        stage: the stage whose settings the message advises to lower.

    Raises:
        StorageError: a disk is full.
        ResourceError: memory ran out.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, AutoMixAlignError):
            # A model that cannot be loaded is called unreadable, also when the reason was too little memory.
            if error.__cause__ is not None and not isinstance(error, ResourceError | StorageError):
                _raise_if_out_of_memory(error.__cause__, title, stage)
            raise
        if is_full_disk_error(error):
            raise _full_disk(error, " or ".join(map(str, _likely_folders())), f"{title}: ") from error
        _raise_if_out_of_memory(error, title, stage)
        raise


def _full_disk(error: BaseException, path: str, prefix: str = "") -> StorageError:
    """The error for a full disk; it names the file that `error` names, else `path`."""
    path = _failed_file(error) or path
    return StorageError(f"{prefix}{path} cannot be written: {_reason(error)}; {_DISK_ADVICE}")


def _raise_if_out_of_memory(error: BaseException, title: str, stage: str) -> None:
    if _is_out_of_memory(error):
        raise ResourceError(f"{title} ran out of memory ({_reason(error)}); {memory_advice(stage)}") from error


def memory_advice(stage: str) -> str:
    """What to do about a stage that needs more memory than there is."""
    return f"lower {_WHAT_TO_LOWER.get(stage, 'the size of the model')}, or give the stage more memory"


def count_oom_kills() -> int | None:
    """How many processes the kernel has killed since it started because memory ran out; None if unknown."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def is_nearly_full(folder: Path) -> bool:
    """Whether the folder's disk may have had no room for an error message."""
    facts = os.statvfs(folder)
    return facts.f_bavail * facts.f_frsize < _NEARLY_FULL_BYTES


def is_full_disk_error(error: BaseException) -> bool:
    """Whether a full disk caused the error."""
    return any(
        (isinstance(each, OSError) and each.errno in _FULL_DISK_ERRNO) or _FULL_DISK.search(str(each))
        for each in _causes(error)
    )


def _is_out_of_memory(error: BaseException) -> bool:
    return any(
        isinstance(each, MemoryError)
        or (isinstance(each, OSError) and each.errno == errno.ENOMEM)
        or _OUT_OF_MEMORY.search(str(each))
        for each in _causes(error)
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, then the errors that caused it."""
    visited: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in visited:
        visited.add(id(each))
        yield each
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)


def _failed_file(error: BaseException) -> str:
    """The file that could not be written, if an error names it; else an empty string."""
    for each in _causes(error):
        if isinstance(each, OSError) and each.errno in _FULL_DISK_ERRNO and (each.filename2 or each.filename):
            name = each.filename2 or each.filename
            return os.fsdecode(name) if isinstance(name, str | bytes) else ""
    return ""


def _likely_folders() -> list[Path]:
    """The folders that a stage writes to besides its results: the full ones, or all if none is full."""
    named = [Path(os.environ[name]) for name in _FOLDER_VARIABLES if name in os.environ]
    folders = [folder for folder in (Path(tempfile.gettempdir()), *named) if folder.is_dir()]
    return [folder for folder in folders if is_nearly_full(folder)] or folders


def _reason(error: BaseException) -> str:
    """The system's message for an errno that this module knows, else the first line of the error's text."""
    for each in _causes(error):
        if isinstance(each, OSError) and each.errno in (*_FULL_DISK_ERRNO, errno.ENOMEM):
            return os.strerror(each.errno).lower()
    if any("no space left on device" in str(each).lower() for each in _causes(error)):
        return "no space left on device"
    text = str(error).strip().partition("\n")[0]
    if "inline_container.cc" in text or "iostream error" in text:
        return f"no space left, or a failing disk ({text})"
    return text or type(error).__name__
