"""Choose the files of a folder that a source reads, and say why it does not read the others."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from automixalign.config.data import LocationSpec
from automixalign.config.sources import data_suffix
from automixalign.data.reading.data_files import KINDS
from automixalign.data.reading.splits import (
    README,
    TRAIN,
    choose_config,
    choose_split,
    read_configs,
    splits_by_config,
    splits_by_name,
)
from automixalign.storage import files
from automixalign.system.errors import DataError

_UNFINISHED = (".tmp", ".temp", ".part", ".partial", ".crdownload", ".download", ".incomplete")
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json")
"""Files that `datasets` writes beside the rows."""
_MAX_LISTED_FILES = 10


class Parts(NamedTuple):
    """The files of a folder, each by its path relative to the folder."""

    read: list[PurePosixPath]
    """The data files to read, in order."""
    passed_over: dict[str, str]
    """The other files -> why they are not read."""


def choose_parts(folder: Path, spec: LocationSpec, name: str) -> Parts:
    """Choose the data files of a folder by `subset` and `split`. Hidden files do not count.

    Without `split`, only files of the split `train` are read. A file that names no split belongs to `train`.

    Args:
        folder: the folder, `data_dir` included.
        spec: the source.
        name: the folder, for messages.

    Raises:
        DataError: there is no data file, no such subset or split, or a sub-folder cannot be read.
    """
    config = choose_config(read_configs(folder, name), spec.subset, name)
    parts, passed_over = _list_parts(folder, name)
    splits = _splits(config, parts, name)
    split = choose_split(list(splits), spec.split, name)
    splits_of: dict[PurePosixPath, list[str]] = {part: [] for part in parts}
    for other in sorted(splits):
        for part in splits[other]:
            splits_of[part].append(other)
    read = []
    for part, own in splits_of.items():
        if own == [split] or (spec.split and split in own):
            read.append(part)
        else:
            passed_over[str(part)] = (
                f"split {' and '.join(own)}; name it by 'split' to read it"
                if own
                else f"{README} lists it in no split of this subset"
            )
    if not read:
        raise DataError(f"{name}: no data file belongs to the split {split!r:.80} alone{_listing(passed_over)}")
    return Parts(read, passed_over)


def _splits(
    config: Mapping[str, object], parts: Sequence[PurePosixPath], name: str
) -> dict[str, list[PurePosixPath]]:
    if data_files := config.get("data_files"):
        return splits_by_config(data_files, parts, name)
    base = PurePosixPath(str(config.get("data_dir") or "."))
    splits: dict[str, list[PurePosixPath]] = {}
    for part in parts:
        if part.is_relative_to(base):
            for split in sorted(splits_by_name(part.relative_to(base))) or [TRAIN]:
                splits.setdefault(split, []).append(part)
    return splits


def _list_parts(folder: Path, name: str) -> tuple[list[PurePosixPath], dict[str, str]]:
    """The data files of a folder, and the other files with the reasons."""
    try:
        listed = files.list_files(folder)
        others = [
            path
            for path in folder.rglob("*")
            if not path.is_file() and (path.is_symlink() or not path.is_dir())
        ]
    except OSError as error:  # without the unreadable part, a model would train on a part of the data
        raise DataError(f"{name}: {error.filename} cannot be read: {error.strerror}") from error
    parts = [PurePosixPath(path.relative_to(folder).as_posix()) for path in listed]
    passed_over = {}
    for path in others:
        if not any(piece.startswith(".") for piece in path.relative_to(folder).parts):
            reason = "a link to a folder" if path.is_dir() else "not a regular file"
            passed_over[path.relative_to(folder).as_posix()] = reason
    data = []
    for part in parts:
        if part.name == "state.json" and any(
            other.parent == part.parent and other.suffix == ".arrow" for other in parts
        ):
            raise DataError(
                f"{name}: {part.parent} is a saved data set; make the path of a source end with this folder"
            )
        if why := _no_data(part):
            passed_over[str(part)] = why
        else:
            data.append(part)
    if not data:
        raise DataError(f"{name}: no data file in this folder ({KINDS}){_listing(passed_over)}")
    return data, passed_over


def _no_data(part: PurePosixPath) -> str | None:
    """Why a file holds no rows; None for a data file."""
    if part.name.lower().endswith(_UNFINISHED):
        return f"an unfinished download ({part.suffix})"
    if part.name in _DESCRIPTIONS:
        return "describes a data set"
    if data_suffix(part.name) is None:
        return f"not a data file ({part.suffix})" if part.suffix else "not a data file"
    return None


def _listing(passed_over: Mapping[str, str]) -> str:
    if not passed_over:
        return "; it is empty"
    some = [f"{file} ({reason})" for file, reason in sorted(passed_over.items())[:_MAX_LISTED_FILES]]
    more = len(passed_over) - len(some)
    return f"; it holds {', '.join(some)}{f' and {more} more' if more else ''}"
