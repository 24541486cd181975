"""Configurations as text: read strict YAML, change keys for the command line, write YAML."""

import re
from pathlib import Path
from typing import Any

import yaml

from automixalign.config.experiment import Experiment
from automixalign.config.sources import PathKind, resolve
from automixalign.system.errors import ConfigError
from automixalign.system.schema import NAMED_LISTS, did_you_mean, element_names

MAX_BYTES = 1 << 20
"""Largest size of a configuration file, a hundred times the size of a long one. Parsing more takes too long."""

_TOO_LONG = f"it is longer than {MAX_BYTES} bytes"
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_TEXT = "tag:yaml.org,2002:str"
_SHORT_FORMS = {
    "base_model": "source",
    "output": "to",
    "decontaminate": "path",
    "benchmarks": "task",
    "methods": "method",
    "merges": "method",
    "tasks.source": "path",
    "tasks.sources": "path",
    "tasks.source.format": "name",
    "tasks.sources.format": "name",
}
"""Key, without indices -> the key below it whose value a bare text is."""


def _error(problem: str, mark: Any) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)


def _number_error(node: Any) -> yaml.constructor.ConstructorError:
    return _error(f"{node.value!r:.80}: write a number in decimal, or text in quotes", node.start_mark)


class _StrictLoader(yaml.SafeLoader):
    """The part of YAML that a configuration needs.

    Full YAML expands aliases without bound, builds other types by tags, keeps the last of two equal keys, and
    reads 010 as eight and 1:30 as ninety. This loader refuses all of these.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.events.AliasEvent):
            raise _error("aliases are not allowed", event.start_mark)
        if event.tag is not None:
            raise _error(f"the tag {event.tag!r:.80} is not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if key.tag != _TEXT:
                raise _error("a key must be text; put it in quotes", key.start_mark)
            if key.value in keys:
                raise _error(f"the key {key.value!r:.80} appears twice", key.start_mark)
            keys.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> int:
        if not _DECIMAL.fullmatch(node.value):
            raise _number_error(node)
        return super().construct_yaml_int(node)

    def construct_yaml_float(self, node: Any) -> float:
        if ":" in node.value:
            raise _number_error(node)
        return super().construct_yaml_float(node)


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_yaml_int)
_StrictLoader.add_constructor("tag:yaml.org,2002:float", _StrictLoader.construct_yaml_float)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a configuration file without checking it yet.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        with path.open("rb") as stream:  # it can be a pipe, and endless
            raw = stream.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise ValueError(_TOO_LONG)
        text = raw.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{path!s:.200} cannot be read: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, or a NUL in the name
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from error
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        kind = {type(None): "an empty file", list: "a list"}.get(type(data), "a single value")
        raise ConfigError(f"{path}: a mapping of keys is needed, not {kind}")
    return data


def parse_yaml(text: str, origin: str) -> Any:
    """The value of a YAML (or JSON) text from `origin`, a name for messages.

    Raises:
        ConfigError: the text is no YAML, is longer than `MAX_BYTES`, or has aliases, tags or equal keys.
    """
    try:
        if len(text) > MAX_BYTES:
            raise ValueError(_TOO_LONG)
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506
    except RecursionError as error:
        raise ConfigError(f"{origin:.300} cannot be read as YAML: it is nested too deep") from error
    # For an impossible date (2024-13-01) PyYAML raises a ValueError.
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{origin:.300} cannot be read as YAML: {error}") from error


def override(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a key of a configuration, in place.

    Args:
        data: the configuration. A short form on the way, such as a bare method, becomes a mapping.
        key: dots between levels: `methods.ama-r.eta`. An element of a list has an index from 0; a task, method
            or merge also has its name, which comes first if it is a number.
        value: the new value.

    Raises:
        ConfigError: the key does not lead to a mapping or to an element of a list.
    """
    node: Any = data
    path = ""
    *parents, last = key.split(".")
    for part in parents:
        at = _key_or_index(node, part, path, key)
        below = node[at] if isinstance(node, list) else node.setdefault(at, {})
        path = path if isinstance(node, list) else f"{path}.{part}".removeprefix(".")
        if isinstance(below, str) and path in _SHORT_FORMS:
            below = node[at] = {_SHORT_FORMS[path]: below}
        node = below
    node[_key_or_index(node, last, path, key)] = value


def _key_or_index(node: Any, part: str, path: str, key: str) -> Any:
    """Where one part of the key `key` leads in `node`, which is at `path`."""
    if isinstance(node, dict):
        return part
    message = f"--set {key:.80}: the configuration has no such key"
    if not isinstance(node, list):
        raise ConfigError(message)
    names = element_names(node) if path in NAMED_LISTS else []
    if names.count(part) > 1:
        raise ConfigError(
            f"--set {key:.80}: {path} has {names.count(part)} entries {part!r}; use an index from 0"
        )
    if part in names:
        return names.index(part)
    if re.fullmatch(r"\d{1,9}", part) and int(part) < len(node):
        return int(part)
    known = [name for name in names if name is not None]
    listed = f"; {path} holds: {', '.join(known)}" if known else ""
    raise ConfigError(f"{message}{did_you_mean(part, known)}{listed}")


def resolve_paths(data: dict[str, Any], folder: Path) -> None:
    """Expand `~`, and make relative paths relative to the configuration's folder, in place."""

    def resolve_in(holder: Any, key: Any, kind: PathKind, below: str) -> None:
        value = (
            holder[key] if isinstance(holder, list) else holder.get(key) if isinstance(holder, dict) else None
        )
        if isinstance(value, str):
            holder[key] = resolve(value, folder, kind)
        elif isinstance(value, dict) and isinstance(value.get(below), str):
            value[below] = resolve(value[below], folder, kind)

    def resolve_all(values: Any, kind: PathKind, below: str) -> None:
        for index in range(len(values) if isinstance(values, list) else 0):
            resolve_in(values, index, kind, below)

    resolve_in(data, "base_model", "model", "source")
    resolve_in(data, "output", "folder", "to")
    resolve_all(data.get("decontaminate"), "dataset", "path")
    resolve_all(data.get("benchmarks"), "benchmark", "task")
    for task in data["tasks"] if isinstance(data.get("tasks"), list) else []:
        resolve_in(task, "source", "dataset", "path")
        if isinstance(task, dict):
            resolve_all(task.get("sources"), "dataset", "path")


def set_task(data: dict[str, Any], name: str, source: str) -> None:
    """Set the source of a task, in place; add a task that does not exist. `override` may add its other keys.

    Raises:
        ConfigError: `tasks` is not a list.
    """
    tasks = data["tasks"] = data.get("tasks") or []
    if not isinstance(tasks, list):
        raise ConfigError(f"--task {name:.80}: 'tasks' is not a list in the configuration")
    for task in tasks:
        if isinstance(task, dict) and task.get("name") == name:
            task.pop("sources", None)
            task["source"] = {"path": source}
            return
    tasks.append({"name": name, "source": {"path": source}})


def dump_yaml(experiment: Experiment) -> str:
    """The experiment as YAML, with every default."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
