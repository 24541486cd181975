"""Two responses and the strength of the preference: nvidia/HelpSteer3, and HelpSteer2's preferences."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from automixalign.data.row_formats.registry import register
from automixalign.data.row_formats.row_format import (
    Draw,
    DroppedRow,
    Fields,
    Messages,
    RowFormat,
    messages,
    reply,
)
from automixalign.data.row_formats.shared.values import (
    as_number,
    as_text,
    as_turn,
    need,
    need_one_of,
    need_text,
)

_TURN = re.compile(r"\s*<extra_id_1>(User|Assistant)\n")
_NAMES = {"context": ("response1", "response2"), "prompt": ("response_1", "response_2")}
_STRENGTHS = ("overall_preference", "preference_strength")


@register("helpsteer3")
class HelpSteer3(RowFormat):
    """`context`, `response1`, `response2` and `overall_preference`, which is negative if the first is better.

    HelpSteer2 calls them `prompt`, `response_1`, `response_2` and `preference_strength`.
    """

    min_strength: Annotated[int, Field(strict=True, ge=1, le=3)] = 1
    """The smallest strength of a preference, from 1 (slightly better) to 3 (much better)."""

    columns = ("context", "response1", "response2", "prompt", "response_1", "response_2", *_STRENGTHS)
    optional = columns

    def read(self, row: Mapping[str, Any], draw: Draw) -> Fields:
        """The preferred response, against the other."""
        asked, strength = need_one_of(row, tuple(_NAMES)), self._strength(row)
        first, second = (need_text(row, name) for name in _NAMES[asked])
        chosen, rejected = (first, second) if strength < 0 else (second, first)
        return {
            "prompt": _prompt(as_turn(row[asked]), asked),
            "chosen": reply(chosen),
            "rejected": reply(rejected),
        }

    def _strength(self, row: Mapping[str, Any]) -> float:
        name = next((name for name in _STRENGTHS if name in row), _STRENGTHS[0])
        if name not in row:
            need(row, name)
        strength = as_number(row[name], name)
        if strength is None:
            raise DroppedRow("unrated")
        if strength == 0:
            raise DroppedRow("tie")
        if abs(strength) < self.min_strength:
            raise DroppedRow("small_gap")
        return strength


def _prompt(value: Any, name: str) -> Messages:
    if isinstance(value, list):
        return value
    first, *parts = _TURN.split(as_text(value, name))
    turns = messages(first)
    for role, content in zip(parts[::2], parts[1::2], strict=True):
        turns.append({"role": role.lower(), "content": content})
    if parts and turns[-1] == {"role": "assistant", "content": ""}:
        del turns[-1]
    return turns
