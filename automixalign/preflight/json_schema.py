"""The JSON Schema of a configuration: with it, an editor completes keys, explains them and marks wrong ones.

A YAML file names it in its first line: `# yaml-language-server: $schema=FILE`.
"""

import json
from collections.abc import Iterator
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from automixalign.config.data import TaskSpec
from automixalign.config.experiment import Experiment
from automixalign.config.merges import MergeSpec
from automixalign.config.methods import GridSpec, MethodSpec
from automixalign.method.merge_methods import registered_merges
from automixalign.method.mixers import registered_mixers

SCHEMA_FILE = "configuration.schema.json"
HEADER = "# yaml-language-server: $schema="
"""Begins the line by which a YAML file names its schema."""
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
"""pydantic leaves these words in numbers with a validator of their own."""


def schema_text() -> str:
    """The schema of a configuration as JSON text. It knows the mixers of this project, and allows others."""
    schema = Experiment.model_json_schema(schema_generator=_Generator)
    return json.dumps({"$schema": _Generator.schema_dialect, **schema}, indent=1, ensure_ascii=False) + "\n"


class _Untitled(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


class _Generator(_Untitled):
    """Writes the keys as a user writes them, and descriptions on one line."""

    def generate(self, schema: Any, mode: Any = "validation") -> dict[str, Any]:
        generated = super().generate(schema, mode)
        definitions = generated["$defs"]
        _accept_one_source(definitions[TaskSpec.__name__])
        mixers = {name: cls for name, cls in registered_mixers().items() if _is_ours(cls)}
        for key, spec, names in (("methods", MethodSpec, mixers), ("merges", MergeSpec, registered_merges())):
            name = {"anyOf": [{"enum": list(names)}, {"type": "string"}]}
            definitions[spec.__name__]["properties"]["method"] |= name
            generated["properties"][key]["items"]["anyOf"][-1] = name
        for mixer in mixers.values():
            options = mixer.schema.model_json_schema(schema_generator=_Untitled)
            definitions |= options.get("$defs", {})
            definitions[MethodSpec.__name__]["properties"] |= options["properties"]
        _accept_grids(generated)
        for node in _mappings(generated):
            for word in filter(node.__contains__, _BOUNDS):
                node[_BOUNDS[word]] = node.pop(word)
            if isinstance(node.get("description"), str):
                node["description"] = " ".join(node["description"].split())
        return generated


def _accept_grids(schema: dict[str, Any]) -> None:
    """Let an entry of `methods` be a grid: the keys of a method, with a value or a list of values."""
    method, grid = MethodSpec.__name__, GridSpec.__name__
    definitions, items = schema["$defs"], schema["properties"]["methods"]["items"]
    references = {
        key: {"$ref": f"#/$defs/{method}/properties/{key}"} for key in definitions[method]["properties"]
    }
    one_value = {key: references.pop(key) for key in GridSpec.model_fields}
    del references["of_grid"]
    values = {key: {"anyOf": [one, {"type": "array", "items": one}]} for key, one in references.items()}
    definitions[grid] = {"type": "object", "properties": one_value | values, "required": ["method"]}
    entry = {"properties": {"grid": {"$ref": f"#/$defs/{grid}"}}, "required": ["grid"]}
    items["anyOf"].insert(0, {"type": "object", **entry, "additionalProperties": False})


def _is_ours(cls: type) -> bool:
    return cls.__module__.startswith("automixalign.")


def _accept_one_source(task: dict[str, Any]) -> None:
    """Let a task have `source` in place of `sources`."""
    keys = ("source", "sources")
    task["properties"]["source"] = task["properties"]["sources"]["items"]
    task["required"] = [key for key in task["required"] if key not in keys]
    task["oneOf"] = [{"required": [key]} for key in keys]


def _mappings(node: Any) -> Iterator[dict[str, Any]]:
    """Every mapping of a JSON document."""
    waiting = [node]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            yield each
        waiting += each.values() if isinstance(each, dict) else each if isinstance(each, list) else []
