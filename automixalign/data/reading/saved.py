"""Find the Arrow files of a data set that `datasets` saved with `save_to_disk`."""

from pathlib import Path

from automixalign.storage import files
from automixalign.system.errors import DataError

_STATE, _SPLITS = "state.json", "dataset_dict.json"


def is_saved(folder: Path) -> bool:
    """Whether a folder is a saved `Dataset` or `DatasetDict`."""
    return (folder / _STATE).exists() or (folder / _SPLITS).exists()


def saved_splits(folder: Path, name: str) -> list[str] | None:
    """The splits of a saved `DatasetDict`; None for a saved `Dataset`.

    Raises:
        DataError: its list of splits is broken, or names a folder elsewhere.
    """
    if not (folder / _SPLITS).exists():
        return None
    return [split for split in _names(folder / _SPLITS, name) if _is_inside(split, _SPLITS, name)]


def saved_files(folder: Path, name: str) -> list[Path]:
    """The Arrow files of a saved `Dataset`, in their order.

    Raises:
        DataError: its list of files is broken, or names a file elsewhere.
    """
    return [folder / file for file in _names(folder / _STATE, name) if _is_inside(file, _STATE, name)]


def _names(path: Path, name: str) -> list[str]:
    try:
        content = files.read_json(path)
        if path.name == _SPLITS:
            return [str(split) for split in content["splits"]]
        return [str(file["filename"]) for file in content["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{name}: not a readable saved data set: {path.name}: {error!r}") from error


def _is_inside(part: str, listed_in: str, name: str) -> bool:
    if Path(part).name != part or part in ("", ".."):
        raise DataError(f"{name}: {listed_in} names {part!r:.200}, which is not in this folder")
    return True
