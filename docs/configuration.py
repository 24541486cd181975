"""Write docs/configuration.md, every key with type, default and meaning, and the JSON Schema beside it.

python docs/configuration.py [--check]    (part of `make pages`)

Types and defaults come from the schema, meanings from the docstrings of its classes and attributes.
"""

import inspect
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from automixalign.config.experiment import Experiment
from automixalign.config.methods import MAX_POINTS
from automixalign.method.merge_methods import MergeMethodSpec, registered_merges
from automixalign.method.mixers import registered_mixers
from automixalign.preflight.json_schema import SCHEMA_FILE, schema_text
from automixalign.system.schema import LARGEST, MAX_NAME, schema_of

PAGE = Path(__file__).with_suffix(".md")
_HEAD = """# Configuration

This page is for people who write a configuration file. `make pages` generates it from the schema in
[`automixalign/config`](../automixalign/config); `make test` checks it.

A configuration is a YAML file with the keys below. `ama run --config FILE` runs it.
`--set KEY=VALUE` changes a key on the command line: `--set training.beta=0.2`. A task, method or merge has its
name: `--set methods.ama-r.eta=0.05`, `--set tasks.helpful.limit=500`,
`--set merges.ties.parameters.density=0.5`. An entry of any list has a number, and the first is 0:
`--set methods.3.eta=0.05`.
`ama validate` prints a configuration with every default. An unknown key or an impossible value is refused
before any work starts. [`examples/`](../examples) and [`pipelines/presets/`](../pipelines/presets) hold whole
configurations.
"""
_METHODS = """
## Methods

A `method` is one of these mixers; [method](method.md) explains them, [extending](extending.md) adds others.
"""
_GRIDS = f"""
## Grids

An entry `grid` of `methods` stands for every combination of the values of its lists, {MAX_POINTS} at most:

```yaml
methods:
  - uniform
  - grid: {{method: ama-r, eta: [0.01, 0.03, 0.1], learning_rate: [1e-4, 3e-4]}}
```

All keys of a method can have a list; a key without one is the same for all points. An option that is a list
itself needs a list around it. The points share data, reference log-probabilities and specialists.

A point is named by the grid's `name` (the method, by default), then each key that has a list with its value, in
the order of the entry: `ama-r-eta0p03-lr1e-4`. `p` stands for the decimal point, `lr` for `learning_rate`, and
`average` for `average_iterates`; `-` follows a key that ends with a digit. A flag is its key, or `no-` and its
key. A text follows `-`: `init-ties`. Any other value is the key and its number in the list, from 1. A name has
{MAX_NAME} characters at most.

The report compares the points and chooses one by its gap on the worst task of the validation split.
`--set methods.ama-r.grid.eta=[0.02]` changes a list of the grid named `ama-r`.
"""
_OPTIONS = "\nTheir options:\n"
_MERGES = """
## Merge methods

A merge's `method` is one of these, by the names of [mergekit](https://github.com/arcee-ai/mergekit). A flag is
0 or 1.
"""
_NONE = "–"  # noqa: RUF001  a dash for no value
_SCALARS = {"integer": "integer", "number": "number", "boolean": "`true` or `false`", "string": "text"}
_SHORT_FORMS = {
    "base_model": "A bare text is its `source`.",
    "methods": "A bare name is its `method`. An entry `grid` stands for several methods; see [grids](#grids).",
    "merges": "A bare name is its `method`.",
    "output": "A bare text is its `to`.",
    "decontaminate": "A bare text is its `path`.",
    "benchmarks": "A bare text is its `task`. [Benchmarks](benchmarks.md) explains them.",
    "tasks.sources": "A bare text is its `path`. [Data](data.md) explains sources and row formats.",
    "tasks.sources.format": "A bare text is its `name`.",
}


def page() -> str:
    """The page as Markdown."""
    schema = Experiment.model_json_schema()
    lines = [
        _HEAD,
        *_section("", Experiment, schema, schema["$defs"], {}),
        _METHODS,
        *_methods(),
        _GRIDS,
        _MERGES,
    ]
    return "\n".join([*lines, *_merges()]) + "\n"


def _section(
    path: str,
    cls: type[BaseModel],
    schema: dict[str, Any],
    definitions: dict[str, Any],
    sections: dict[str, str],
) -> Iterator[str]:
    """The keys of a class, then a section for each key that has keys of its own."""
    nested = []
    rows = []
    for key, field in cls.model_fields.items():
        below = schema_of(field)
        meaning = _meaning(cls, key) or (_first_paragraph(below) if below else "")
        if not meaning:
            raise SystemExit(f"{cls.__name__}.{key} has no docstring")
        if below and below.__name__ not in sections:
            sections[below.__name__] = f"{path}{key}"
            nested.append((key, below))
        kind = _type(schema["properties"][key], definitions, sections) + _bounds(field)
        rows.append([f"`{key}`", kind, _default(schema, key), meaning])
    yield f"## {f'`{path[:-1]}`' if path else 'Top level'}\n"
    if path:
        yield " ".join([_first_paragraph(cls), _SHORT_FORMS.get(path[:-1], "")]).strip() + "\n"
    yield _table(["Key", "Type", "Default", "Meaning"], rows) + "\n"
    for key, below in nested:
        yield from _section(f"{path}{key}.", below, definitions[below.__name__], definitions, sections)


def _meaning(cls: type[BaseModel], key: str) -> str:
    """The docstring below an attribute, also one of a base class."""
    return " ".join((cls.model_fields[key].description or "").split())


def _first_paragraph(cls: type) -> str:
    return " ".join(inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].split())


def _type(schema: dict[str, Any], definitions: dict[str, Any], sections: dict[str, str]) -> str:
    """A JSON schema in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        path = sections.get(name, name)
        return f"[`{path}`](#{path.replace('.', '').lower()})"
    if "anyOf" in schema:
        kinds = [_type(each, definitions, sections) for each in schema["anyOf"] if each.get("type") != "null"]
        if set(_SCALARS.values()) <= set(kinds):
            kinds = ["value", *(kind for kind in kinds if kind not in _SCALARS.values())]
        return " or ".join(kinds)
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'], definitions, sections)}"
    if schema.get("type") == "object":
        items = schema.get("additionalProperties") or next(iter(schema["patternProperties"].values()))
        return f"map to {_type(items, definitions, sections)}"
    return _SCALARS[schema["type"]]


def _bounds(field: FieldInfo) -> str:
    """The limits of a number in words, such as ", above 0"."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    limits: dict[str, list[float]] = {}
    for constraint in _constraints(field.annotation, field.metadata):
        for name in words:
            if (limit := getattr(constraint, name, None)) not in (None, LARGEST):
                limits.setdefault(name, []).append(limit)
    tightest = {name: (max if name in ("ge", "gt") else min)(values) for name, values in limits.items()}
    bounds = [f"{words[name]} {limit}" for name, limit in tightest.items()]
    return f", {' and '.join(bounds)}" if bounds else ""


def _constraints(annotation: Any, metadata: Iterable[Any]) -> Iterator[Any]:
    """The constraints of a type and of the alternatives of a union."""
    for each in metadata:
        yield from each.metadata if isinstance(each, FieldInfo) else [each]
    if get_origin(annotation) is Annotated:
        yield from _constraints(annotation.__origin__, annotation.__metadata__)
    elif get_origin(annotation) in (Union, UnionType):
        for alternative in get_args(annotation):
            yield from _constraints(alternative, ())


def _default(schema: dict[str, Any], key: str) -> str:
    if key in schema.get("required", []):
        return "required"
    value = schema["properties"][key].get("default")
    if value is None or isinstance(value, dict):
        return _NONE
    return f"`{str(value).lower() if isinstance(value, bool) else value}`" if value != "" else _NONE


def _methods() -> Iterator[str]:
    mixers = {
        name: cls for name, cls in registered_mixers().items() if cls.__module__.startswith("automixalign.")
    }
    yield _table(["Method", "What it does"], ([f"`{n}`", _first_paragraph(cls)] for n, cls in mixers.items()))
    yield _OPTIONS
    rows: dict[tuple[str, ...], list[str]] = {}
    for name, cls in mixers.items():
        schema = cls.schema.model_json_schema()
        for key, field in cls.schema.model_fields.items():
            kind = _type(schema["properties"][key], {}, {}) + _bounds(field)
            row = (f"`{key}`", kind, _default(schema, key), _meaning(cls.schema, key))
            rows.setdefault(row, []).append(f"`{name}`")
    head = ["Option", "Type", "Default", "Meaning", "Of"]
    yield _table(head, ([*row, ", ".join(names)] for row, names in rows.items()))


def _merges() -> Iterator[str]:
    head = ["Method", "Specialists", "Parameters with defaults", "Source"]
    rows = []
    own = {name: spec for name, spec in registered_merges().items() if spec.implementation is None}
    for name, spec in own.items():
        rows.append([f"`{name}`", spec.accepts, _parameters(spec) or _NONE, f"<{spec.paper}>"])
    yield _table(head, rows)


def _parameters(spec: MergeMethodSpec) -> str:
    defaults = {**spec.default_parameters, **spec.per_model_parameters}
    return ", ".join(
        f"`{key}`" + (f" {float(defaults[key]):g}" if key in defaults else "") + f" ({limits})"
        for key, limits in spec.limits.items()
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells))


def texts() -> dict[Path, str]:
    """The files that this module writes."""
    return {PAGE: page(), PAGE.with_name(SCHEMA_FILE): schema_text()}


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(any(text != path.read_text(encoding="utf-8") for path, text in texts().items()))
    for path, text in texts().items():
        path.write_text(text, encoding="utf-8")
