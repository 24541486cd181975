"""A task for lm-evaluation-harness in a YAML file of the user: its configuration, and the files that it names.

lm-evaluation-harness takes relative data files from the working directory, which a stage does not choose. Here
they are relative to the YAML file.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automixalign.config.sources import BenchmarkFile
from automixalign.storage import files
from automixalign.system.errors import ConfigError

_FUNCTION = re.compile(r"!function\s+['\"]?([\w.]+)\.\w+")
"""A tag that names a Python function of the user: `MODULE.FUNCTION`."""
_ADDRESS = re.compile(r"[a-z0-9+]+://")


@dataclass(frozen=True)
class TaskFile:
    """A task as lm-evaluation-harness takes it, and what it consists of."""

    key: str
    """Of the benchmark in the configuration."""
    path: Path
    config: Mapping[str, Any]
    """With absolute paths of the data files."""
    code: tuple[Path, ...]
    """Python files that the task runs."""
    files: tuple[Path, ...]
    """The YAML file and what it names: included YAML files, Python files, data files and folders."""
    is_on_hub: bool
    """Whether its examples come from the hub."""

    def fingerprint(self) -> str:
        """A text that changes with the content of each file."""
        return " ".join(files.digest(path) for path in self.files)


def read_task_file(source: BenchmarkFile, run_code: bool = False) -> TaskFile:
    """Read a task of the user.

    Args:
        source: the YAML file.
        run_code: whether to import the Python functions that it names. Otherwise they stay names.

    Raises:
        ConfigError: the file is missing, is not the YAML of a task, or names a file that does not exist.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    path = source.path.absolute()
    try:
        parts = list(dict.fromkeys(_yaml_files(path)))
        config = load_yaml(path, resolve_func=run_code)
    except Exception as error:  # PyYAML's, and whatever the user's code raises
        raise ConfigError(f"{source.label} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(config.get("task"), str):
        raise ConfigError(f"{source.label} has no key 'task' with a name, so it is no task")
    data = _anchor(config, path.parent, source)
    code = [module for part in parts for module in _modules(part)]
    return TaskFile(
        key=source.key,
        path=path,
        config=config,
        code=tuple(dict.fromkeys(code)),
        files=tuple(dict.fromkeys([*parts, *code, *data])),
        is_on_hub=bool(config.get("dataset_path")) and not data,
    )


def _yaml_files(path: Path, including: tuple[Path, ...] = ()) -> Iterator[Path]:
    """A YAML file, and those that it includes."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if path in including:
        raise ValueError(f"{path} includes itself")
    yield path
    includes = load_yaml(path, resolve_func=False, recursive=False).get("include", [])
    for name in includes if isinstance(includes, list) else [includes]:
        yield from _yaml_files((path.parent / name).resolve(), (*including, path))


def _modules(path: Path) -> Iterator[Path]:
    """The Python files beside a YAML file whose functions it names; other modules are installed packages."""
    for module in _FUNCTION.findall(path.read_text(encoding="utf-8")):
        file = path.parent / f"{module.replace('.', '/')}.py"
        if file.is_file():
            yield file


def _anchor(config: dict[str, Any], folder: Path, source: BenchmarkFile) -> list[Path]:
    """Make the data paths of a task absolute, in place, and list the files."""
    found: list[Path] = []

    def anchored(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: anchored(each) for key, each in value.items()}
        if isinstance(value, list):
            return [anchored(each) for each in value]
        if not isinstance(value, str) or _ADDRESS.match(value):
            return value
        path = folder / value
        matches = [path] if path.exists() or Path(value).is_absolute() else sorted(folder.glob(value))
        if not matches or not matches[0].exists():
            raise ConfigError(f"{source.label} names data that do not exist: {path}")
        found.extend(matches)
        return str(path)

    location, options = config.get("dataset_path") or "", config.get("dataset_kwargs") or {}
    if "/" not in location:  # a reader of files, such as `json`
        paths = {key: anchored(options[key]) for key in ("data_files", "data_dir") if key in options}
        config["dataset_kwargs"] = options | paths
    elif (folder / location).exists():  # otherwise it is on the hub
        config["dataset_path"] = anchored(location)
    return found
