"""Configurations as text: read YAML strictly, change keys from the command line, write YAML."""

from pathlib import Path
from typing import Any

import yaml

from automixalign.config import Experiment
from automixalign.errors import ConfigError


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML would silently keep the last of two equal keys, and expand anchors without bound."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.constructor.ConstructorError(None, None, "aliases are not allowed", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a configuration file without checking it yet.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from error
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a mapping of keys is needed, not {type(data).__name__}")
    return data


def parse_yaml(text: str, origin: str) -> Any:
    """The value of a YAML (or JSON) text from `origin`, without aliases and without a key that stands twice.

    Raises:
        ConfigError: it is no such text.
    """
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506
    # PyYAML lets a date that no calendar has (2024-13-01) through as a ValueError.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{origin} cannot be read as YAML: {error}") from error


def override(data: dict[str, Any], key: str, value: Any) -> None:
    """Set `key` (dots between levels, an index for a list: `methods.2.eta`) in place.

    Raises:
        ConfigError: the path does not lead to a mapping or to an element of a list.
    """
    node: Any = data
    *parents, last = key.split(".")
    try:
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        if isinstance(node, list):
            node[int(last)] = value
        elif isinstance(node, dict):
            node[last] = value
        else:
            raise TypeError
    except (IndexError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"--set {key}: there is no such place in the configuration") from error


def set_task(data: dict[str, Any], name: str, source: str) -> None:
    """Point task `name` at `source`, in place; a task that is not there yet is added.

    Raises:
        ConfigError: `tasks` is there, but no list.
    """
    tasks = data["tasks"] = data.get("tasks") or []
    if not isinstance(tasks, list):
        raise ConfigError(f"--task {name}: 'tasks' is not a list in the configuration")
    for task in tasks:
        if isinstance(task, dict) and task.get("name") == name:
            task["source"] = source
            return
    tasks.append({"name": name, "source": source})


def dump(experiment: Experiment) -> str:
    """The resolved experiment as YAML, every default written out."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
