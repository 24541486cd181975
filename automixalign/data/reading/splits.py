"""Which split a file of a data set belongs to: by its name, or by the front matter of README.md.

The rules are those of `datasets`: https://huggingface.co/docs/datasets/repository_structure. Unlike there,
case does not matter, and each path is judged by itself.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from automixalign.system.errors import DataError

TRAIN = "train"
README = "README.md"

_KEYWORDS = {
    TRAIN: "train|training",
    "validation": "validation|valid|dev|val",
    "test": "test|testing|eval|evaluation",
}
_SEPARATOR = "[-._ 0-9]"
_IN_FILE, _IN_FOLDER = (
    {
        split: re.compile(f"(?:.*{_SEPARATOR})?(?:{words}){end}", re.IGNORECASE | re.DOTALL)
        for split, words in _KEYWORDS.items()
    }
    for end in (f"{_SEPARATOR}.*", f"(?:{_SEPARATOR}.*)?")
)
_SHARD = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*\.[^/]*")
_FRONT_MATTER = re.compile(r"---\s*\n(.*?)\n---\s*(\n|$)", re.DOTALL)


def splits_by_name(part: PurePosixPath) -> set[str]:
    """The splits that a path names; several if it holds the words of several, none for a part of no split.

    Args:
        part: the path of the file, relative to the data set.
    """
    if shard := _SHARD.fullmatch(str(part)):
        return {shard[1]}
    folders = {
        split
        for split, name in _IN_FOLDER.items()
        if any(name.fullmatch(folder) for folder in part.parent.parts)
    }
    return folders or {split for split, name in _IN_FILE.items() if name.fullmatch(part.name)}


def choose_split(splits: Sequence[str], split: str | None, name: str) -> str:
    """The split to read: the one asked for; else `train`, or the only one unless it is for validation or test.

    Args:
        splits: those that exist.
        split: the one asked for.
        name: the source, for messages.

    Raises:
        DataError: there is no such split, or none is asked for and none is for training.
    """
    listed = ", ".join(splits)
    if split is not None:
        if split not in splits:
            raise DataError(f"{name}: there is no split {split!r:.80}; there are: {listed}")
        return split
    if TRAIN in splits:
        return TRAIN
    # A name is tested as that of a file.
    if len(splits) != 1 or splits_by_name(PurePosixPath(f"{splits[0]}.")) - {TRAIN}:
        raise DataError(f"{name}: there is no split 'train'; name one by 'split': {listed}")
    return splits[0]


def read_configs(folder: Path, name: str) -> dict[str, Mapping[str, Any]]:
    """The subsets that README.md describes: name -> its `data_files`, `data_dir` and `default`.

    Raises:
        DataError: its front matter is broken.
    """
    try:
        text = (folder / README).read_text(encoding="utf-8-sig") if (folder / README).is_file() else ""
        front_matter = _FRONT_MATTER.match(text)
        content = yaml.safe_load(front_matter[1]) if front_matter else None
        configs = (content or {}).get("configs") or []
        return {str(config["config_name"]): config for config in configs}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, yaml.YAMLError) as error:
        raise DataError(f"{name}/{README}: its front matter has no readable 'configs': {error}") from error


def choose_config(configs: Mapping[str, Mapping[str, Any]], subset: str | None, name: str) -> Mapping[str, Any]:
    """The description of a subset; without one, of the only or the default subset; empty if there are none.

    Raises:
        DataError: there is no such subset, or several and none is the default.
    """
    listed = ", ".join(configs) or "none"
    if subset is not None:
        if subset not in configs:
            raise DataError(f"{name}: there is no subset {subset!r:.80}; in its {README} there are: {listed}")
        return configs[subset]
    if len(configs) < 2:
        return next(iter(configs.values()), {})
    default = [config for key, config in configs.items() if key == "default" or config.get("default")]
    if len(default) != 1:
        raise DataError(f"{name}: has several subsets; name one by 'subset': {listed}")
    return default[0]


def splits_by_config(
    data_files: Any, parts: Sequence[PurePosixPath], name: str
) -> dict[str, list[PurePosixPath]]:
    """Split -> its parts, by the patterns of `data_files` in README.md.

    Only files of the data set can match, whatever a pattern says.

    Raises:
        DataError: `data_files` has another form.
    """
    from fsspec.utils import glob_translate  # type: ignore[import-untyped]

    entries = data_files if isinstance(data_files, list) else [data_files]
    if all(isinstance(entry, str) for entry in entries):
        entries = [{"split": TRAIN, "path": entries}]
    splits: dict[str, list[PurePosixPath]] = {}
    try:
        for entry in entries:
            paths = [entry["path"]] if isinstance(entry["path"], str) else entry["path"]
            patterns = [re.compile(glob_translate(path.removeprefix("./"))) for path in paths]
            splits[str(entry["split"])] = [
                part for part in parts if any(pattern.match(str(part)) for pattern in patterns)
            ]
    except (TypeError, LookupError, AttributeError, ValueError, re.error) as error:
        raise DataError(f"{name}/{README}: its 'data_files' cannot be read: {error!r}") from error
    return splits
