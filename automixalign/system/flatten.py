"""Nested settings or numbers as pairs of one key and one value."""

from typing import Any


def flatten(value: Any, separator: str = ".", key: str = "") -> list[tuple[str, Any]]:
    """`{"a": {"b": 1}}` -> `("a.b", 1)`. A list's elements get their number as key; an empty element stays."""
    if not key and not value:
        return []
    if isinstance(value, dict) and value:
        items = list(value.items())
    elif isinstance(value, list | tuple) and value:
        items = list(enumerate(value))
    else:
        return [(key, value)]
    return [
        leaf
        for part, below in items
        for leaf in flatten(below, separator, f"{key}{separator}{part}" if key else str(part))
    ]
