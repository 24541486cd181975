"""Take values of a kind from a row; what they refuse is named with its field."""

import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

_MAX_LISTED = 300
_JSON_MESSAGES = re.compile(r"\s*\[\s*\{\s*\"")


def need(row: Mapping[str, Any], name: str) -> Any:
    """The value of a field that every row must have.

    Raises:
        ValueError: the field is missing or null; the text lists the fields that there are.
    """
    value = row.get(name)
    if value is None:
        problem = "is null" if name in row else "is missing"
        raise ValueError(
            f"the field {name!r} {problem}; the row has: {', '.join(row) or 'nothing':.{_MAX_LISTED}}"
        )
    return value


def need_text(row: Mapping[str, Any], name: str) -> str:
    """The text of a field that every row must have.

    Raises:
        ValueError: the field is missing, or no text.
    """
    return as_text(need(row, name), name)


def need_one_of(row: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """Which of these fields a row has. The first comes before the others, so that `columns` can map any to it.

    Raises:
        ValueError: it has none, or a null, or several but the first.
    """
    given = [name for name in names if row.get(name)]
    if len(given) > 1 and given[0] != names[0]:
        raise ValueError(
            f"the row has {given[0]!r} and {given[1]!r}; say which to read, "
            f"as in 'columns: {{{names[0]}: {given[0]}}}'"
        )
    if given:
        return given[0]
    name = next((name for name in names if name in row), names[0])
    need(row, name)
    return name


def as_text(value: Any, name: str) -> str:
    """The value, if it is text.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name!r} must be text, not {describe_value(value)}")
    return value


def as_list(value: Any, name: str) -> list[Any]:
    """The value, if it is a list; or the list that a text holds as JSON, as in CSV.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, str) and value.startswith("["):
        with suppress(ValueError):
            value = json.loads(value)
    if not isinstance(value, list):
        raise ValueError(f"{name!r} must be a list, not {describe_value(value)}")
    return value


def as_turn(value: Any) -> Any:
    """The messages that a text holds as JSON, as some tables store them; any other value as it is."""
    if isinstance(value, str) and _JSON_MESSAGES.match(value):
        with suppress(ValueError, RecursionError):
            decoded = json.loads(value)
            if all(isinstance(each, dict) and isinstance(each.get("role"), str) for each in decoded):
                return decoded
    return value


def as_number(value: Any, name: str) -> float | None:
    """The value, if it is a number; or the number that a text holds, as in CSV. None for null, NaN and no text.

    Raises:
        ValueError: it is none of these.
    """
    if value is None or value == "":
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.inf
    if isinstance(value, float) and math.isnan(number):
        return None
    if not math.isfinite(number):
        raise ValueError(f"{name!r} must be a number, not {describe_value(value)}")
    return number


def describe_value(value: Any) -> str:
    """A value for a message. A list or an object may be large and deep, so only its type is named."""
    if isinstance(value, (list, dict)):
        return f"{'a' if value else 'an empty'} {type(value).__name__}"
    return f"{value!r:.40}"
