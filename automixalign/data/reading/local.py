"""Open a file or folder of this machine as a source."""

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from automixalign.config.data import LocationSpec
from automixalign.data.reading.data_files import check_kind, read_file
from automixalign.data.reading.folders import choose_parts
from automixalign.data.reading.row import OpenSource
from automixalign.data.reading.saved import is_saved, saved_files, saved_splits
from automixalign.data.reading.splits import choose_split
from automixalign.data.reading.tables import read_arrow
from automixalign.system.errors import DataError

_SELECTIONS = ("subset", "data_dir", "split")


def open_local(path: Path, spec: LocationSpec, columns: Collection[str] | None = None) -> OpenSource:
    """Open a data file, a folder of data files, or a saved data set.

    Args:
        path: the file or folder.
        spec: the source; its `path` is the name for messages.
        columns: as for `open_source`.

    Raises:
        DataError: it is no data, or has no such subset or split.
    """
    name = spec.path.rstrip("/") or "/"
    if not path.is_dir():
        refuse_keys(spec, "is one file")
        check_kind(path, name)
        return OpenSource(spec.path, [lambda: read_file(path, name, columns)])
    if spec.data_dir:
        refuse_keys(spec, "takes either 'subset' or 'data_dir'", ("subset",))
        path, name = _inside(path, spec.data_dir, name), f"{name}/{spec.data_dir.strip('/')}"
    if is_saved(path):
        refuse_keys(spec, "is a saved data set", ("subset",))
        return _open_saved(path, spec, name, columns)
    parts, passed_over = choose_parts(path, spec, name)
    readers = [partial(read_file, path / part, f"{name}/{part}", columns) for part in parts]
    return OpenSource(spec.path, readers, passed_over)


def refuse_keys(spec: LocationSpec, reason: str, keys: Sequence[str] = _SELECTIONS) -> None:
    """Refuse keys that select a part of a source that has no such parts.

    Raises:
        DataError: the source has one of the keys.
    """
    for key in keys:
        if getattr(spec, key) is not None:
            raise DataError(f"{spec.path} {reason}: remove {key!r}")


def _inside(folder: Path, below: str, name: str) -> Path:
    inside = folder / below
    if Path(below).is_absolute() or ".." in Path(below).parts or not inside.is_dir():
        raise DataError(f"{name}: 'data_dir': {below!r:.200} is not a folder inside it")
    return inside


def _open_saved(path: Path, spec: LocationSpec, name: str, columns: Collection[str] | None) -> OpenSource:
    splits = saved_splits(path, name)
    passed_over: dict[str, str] = {}
    if splits is None:
        refuse_keys(spec, "is a saved data set without splits", ("split",))
    else:
        split = choose_split(splits, spec.split, name)
        passed_over = {
            other: f"split {other}; name it by 'split' to read it" for other in splits if other != split
        }
        path, name = path / split, f"{name}/{split}"
    paths = saved_files(path, name)
    return OpenSource(spec.path, [lambda: read_arrow(paths, name, columns)], passed_over)
