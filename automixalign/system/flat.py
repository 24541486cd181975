"""Nested settings or numbers as pairs of one key and one value."""

from typing import Any


def flat(value: Any, separator: str = ".", key: str = "") -> list[tuple[str, Any]]:
    """`{"a": {"b": 1}}` -> `("a.b", 1)`; list elements by their number, an empty element as it is."""
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
        for leaf in flat(below, separator, f"{key}{separator}{part}" if key else str(part))
    ]
