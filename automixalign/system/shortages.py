"""Too little disk or memory: one named error for what Python and the libraries each say in their own words.

torch, safetensors, tokenizers, Arrow and SQLite raise errors of their own kinds, most without an errno, and
torch hides the cause of a checkpoint that could not be written. What they have in common is their text.
"""

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from automixalign.system.errors import AutoMixAlignError, ResourceError, StorageError

_FULL = re.compile(
    "no space left on device|disk quota exceeded|file too large|database or disk is full"
    r"|inline_container\.cc|iostream error",  # the last two: torch.save, whatever the reason
    re.IGNORECASE,
)
_FULL_ERRNO = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SHORT = re.compile(
    r"(can't|cannot|unable to|failed to) allocate|out of memory|std::bad_alloc|can't start new thread",
    re.IGNORECASE,
)
_FREE = "free some (in a container: raise its limit), or name a place on another disk, and start again"
_NEARLY_FULL = 1 << 20
_PLACES = ("AMA_LOGS", "AMA_SPOOL", "AMA_CHECKPOINTS")
"""Folders that the environment of a step names."""

_TRAINING = (
    "training.micro_batch_size, training.processes or max_length, or set training.gradient_checkpointing"
)
_SCORING = "evaluation.batch_size or max_length"
_LOWER = {
    "prepare_data": "limit of each task, or name a smaller base model",
    "reference_logps": _SCORING,
    "specialist_losses": _SCORING,
    "evaluate": _SCORING,
    "train_specialist": _TRAINING,
    "train_generalist": _TRAINING,
}


@contextmanager
def written(path: Path) -> Iterator[None]:
    """While `path` is written: raise a `StorageError` that names it where its disk is full."""
    try:
        yield
    except Exception as error:
        if isinstance(error, AutoMixAlignError) or not is_full_disk(error):
            raise
        place = _place(error) or path
        raise StorageError(f"{place} cannot be written: {_reason(error)}; {_FREE}") from error


@contextmanager
def of_step(title: str, stage: str) -> Iterator[None]:
    """While a step works: name what it had too little of, where nobody nearer to it did.

    Raises:
        StorageError: a disk is full.
        ResourceError: memory ran out.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, AutoMixAlignError):
            # Who loads a model calls it unreadable whatever the reason, also where memory ran out meanwhile.
            if error.__cause__ is not None and not isinstance(error, ResourceError | StorageError):
                _name_memory(error.__cause__, title, stage)
            raise
        if is_full_disk(error):
            where = _place(error) or " or ".join(map(str, _likely_places()))
            raise StorageError(f"{title}: {where} cannot be written: {_reason(error)}; {_FREE}") from error
        _name_memory(error, title, stage)
        raise


def _name_memory(error: BaseException, title: str, stage: str) -> None:
    if _is_short_of_memory(error):
        raise ResourceError(f"{title} ran out of memory ({_reason(error)}); {advice(stage)}") from error


def advice(stage: str) -> str:
    """What to do about a stage that needs more memory than there is."""
    return f"lower {_LOWER.get(stage, 'the size of the model')}, or give the step more memory"


def killed_for_memory() -> int | None:
    """How many processes the system has killed for want of memory since it started; None where it is silent."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def is_nearly_full(folder: Path) -> bool:
    """Whether so little is left on the folder's disk that an error message may have found no room."""
    facts = os.statvfs(folder)
    return facts.f_bavail * facts.f_frsize < _NEARLY_FULL


def is_full_disk(error: BaseException) -> bool:
    """Whether an error comes from a disk without room."""
    return any(
        (isinstance(each, OSError) and each.errno in _FULL_ERRNO) or _FULL.search(str(each)) is not None
        for each in _chain(error)
    )


def _is_short_of_memory(error: BaseException) -> bool:
    return any(
        isinstance(each, MemoryError)
        or (isinstance(each, OSError) and each.errno == errno.ENOMEM)
        or _SHORT.search(str(each)) is not None
        for each in _chain(error)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it came from."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)


def _place(error: BaseException) -> str:
    """The file that could not be written, where the error names one."""
    for each in _chain(error):
        if (
            isinstance(each, OSError)
            and each.errno in _FULL_ERRNO
            and (name := each.filename2 or each.filename)
        ):
            return os.fsdecode(name) if isinstance(name, str | bytes) else ""
    return ""


def _likely_places() -> list[Path]:
    """The folders a step writes to besides its results: those that are full, or else all."""
    named = [Path(os.environ[name]) for name in _PLACES if name in os.environ]
    places = [place for place in (Path(tempfile.gettempdir()), *named) if place.is_dir()]
    return [place for place in places if is_nearly_full(place)] or places


def _reason(error: BaseException) -> str:
    """The first line of what was said, or what stands for it."""
    for each in _chain(error):
        if isinstance(each, OSError) and each.errno in (*_FULL_ERRNO, errno.ENOMEM):
            return (os.strerror(each.errno)).lower()
    if any("no space left on device" in str(each).lower() for each in _chain(error)):
        return "no space left on device"
    text = str(error).strip().partition("\n")[0]
    if "inline_container.cc" in text or "iostream error" in text:
        return f"no space left, or a failing disk ({text})"
    return text or type(error).__name__
