"""The types of checked configuration: strict numbers, models that refuse unknown keys, and fault messages."""

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)
from pydantic.fields import FieldInfo


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is needed, not a boolean")
    return value


MAX_NAME = 40
"""Most characters of a name."""
Name = Annotated[str, StringConstraints(pattern=rf"^[A-Za-z0-9][A-Za-z0-9_-]{{0,{MAX_NAME - 1}}}$")]
LARGEST = 2**31 - 1
"""The largest integer that every library in use accepts."""

Text = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=1000)]
"""A path, an address or an external name: on one line, and not empty."""
Count = Annotated[int, Field(strict=True, ge=1, le=LARGEST)]
Natural = Annotated[int, Field(strict=True, ge=0, le=LARGEST)]
Number = Annotated[float, BeforeValidator(_not_bool), Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
PositiveFraction = Annotated[Number, Field(gt=0, le=1)]
Flag = Annotated[bool, Field(strict=True)]


class Schema(BaseModel):
    """Refuses unknown keys, and cannot be changed after the check. Docstrings describe its fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @classmethod
    def known_keys(cls, data: Any) -> list[str]:
        """The keys that a user can write in `data`, a section of this schema; dots lead to keys below."""
        below = {key: schema_of(field) for key, field in cls.model_fields.items()}
        return [
            *below,
            *(f"{key}.{name}" for key, schema in below.items() if schema for name in schema.model_fields),
        ]


NAMED_LISTS = ("tasks", "methods", "merges")
"""Lists at the top level of a configuration, whose elements have names."""
_MAX_LISTED_FAULTS = 20
_NAME = TypeAdapter(Name)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'seed'?)` if a known word is like `word`, else an empty text; it follows the word."""
    match = _closest(word, known)
    return f" (did you mean {match!r}?)" if match else ""


def element_names(elements: Iterable[Any]) -> list[str | None]:
    """The name of each element of a named list; None for an element without a valid name."""
    names: list[str | None] = []
    for element in elements:
        name = element
        if isinstance(element, Mapping):
            grid = element.get("grid")
            named = grid if isinstance(grid, Mapping) else element
            name = named.get("name", named.get("method"))
        try:
            names.append(_NAME.validate_python(name, strict=True))
        except ValidationError:
            names.append(None)
    return names


def schema_of(field: FieldInfo) -> type[BaseModel] | None:
    """The schema of a field, or of the items of a list or map; None for plain values."""
    waiting = [field.annotation]
    while waiting:
        each = waiting.pop()
        if inspect.isclass(each) and issubclass(each, BaseModel):
            return each
        waiting += getattr(each, "__args__", ())
    return None


def describe(error: ValidationError, schema: type[BaseModel] | None = None, data: Any = None) -> str:
    """One line for each fault: the key as a user writes it (`tasks.helpful.limit`), then what is wrong with it.

    Unknown keys come first. A required key that an unknown one resembles is no fault of its own.

    Args:
        error: the faults.
        schema: the schema of `data`; its keys are suggested for unknown ones.
        data: what was checked; it gives elements of lists their names.
    """
    faults = error.errors(include_url=False)
    unknown = [fault["loc"] for fault in faults if fault["type"] == "extra_forbidden"]
    faults = [
        fault
        for fault in faults
        if fault["type"] != "missing" or not any(_is_misspelt(fault["loc"], other) for other in unknown)
    ]
    faults.sort(key=lambda fault: fault["type"] != "extra_forbidden")
    lines = []
    for fault in faults[:_MAX_LISTED_FAULTS]:
        key = _key(fault["loc"], data)
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            known = _known_keys(schema, fault["loc"][:-1], data)
            message = f"unknown key{did_you_mean(str(fault['loc'][-1]), known)}"
        elif not isinstance(fault["input"], (dict, list, Schema)):
            choices = re.findall("'([^']*)'", fault.get("ctx", {}).get("expected", ""))
            match = _closest(str(fault["input"]), choices)
            message += f" (it is {fault['input']!r:.80}{f'; did you mean {match!r}?' if match else ''})"
        lines.append(f"{key:.200}: {message}" if key else message)
    if len(faults) > _MAX_LISTED_FAULTS:
        lines.append(f"and {len(faults) - _MAX_LISTED_FAULTS} more")
    return "\n".join(lines)


def _closest(word: str, known: Iterable[str]) -> str | None:
    known = list(known)
    words = {each.lower(): each for each in known if "." not in each}
    below = [each for each in known if each.endswith(f".{word}")]  # the right key in the wrong section
    matches = get_close_matches(word.lower(), words, n=1)
    return below[0] if len(below) == 1 else words[matches[0]] if matches else None


def _is_misspelt(missing: Sequence[int | str], unknown: Sequence[int | str]) -> bool:
    return missing[:-1] == unknown[:-1] and _closest(str(unknown[-1]), [str(missing[-1])]) is not None


def _child(data: Any, part: int | str) -> Any:
    try:
        return data[part]
    except (LookupError, TypeError):
        return None


def _key(location: Sequence[int | str], data: Any) -> str:
    """A location with the names of elements, and with `source` where the user wrote one for `sources`."""
    parts: list[str] = []
    rest = list(location)
    while rest:
        part = rest.pop(0)
        if isinstance(part, str) and "[" in part and not (isinstance(data, Mapping) and part in data):
            continue  # pydantic's mark for the key of a map, or for a member of a union: `dict[str,float]`
        if part == "sources" and isinstance(data, Mapping) and part not in data and "source" in data:
            part, rest = "source", rest[1:]
        name = None
        if isinstance(data, list) and isinstance(part, int) and len(parts) == 1 and parts[0] in NAMED_LISTS:
            names = element_names(data)
            name = names[part] if names.count(names[part]) == 1 else None
        parts.append(name or str(part))
        data = _child(data, part)
    return ".".join(parts)


def _known_keys(schema: type[BaseModel] | None, location: Sequence[int | str], data: Any) -> list[str]:
    """The keys of the section at a location; parts that are no field are indices or keys of maps."""
    for part in location:
        data = _child(data, part)
        if schema is not None and part in schema.model_fields:
            schema = schema_of(schema.model_fields[str(part)])
    return schema.known_keys(data) if schema is not None and issubclass(schema, Schema) else []
