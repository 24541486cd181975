"""Conversations of `from` and `value`, as LLaMA-Factory reads them; also with `role` and `content`."""

import json
from collections.abc import Mapping
from typing import Any

from automixalign.data.row_formats.registry import register
from automixalign.data.row_formats.row_format import EXTRAS, Draw, Fields, Messages, RowFormat, extras, reply
from automixalign.data.row_formats.shared.beside import MEDIA, SYSTEM, refuse_media, system_of, with_system
from automixalign.data.row_formats.shared.values import as_list, as_text, describe_value, need

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_call": "assistant",
}


@register("sharegpt")
class ShareGpt(RowFormat):
    """`conversations`, and a message, text or list of messages as `chosen` and `rejected`; perhaps `system`."""

    columns = ("conversations", "chosen", "rejected", *SYSTEM, *EXTRAS, *MEDIA)
    optional = (*SYSTEM, *EXTRAS, *MEDIA)
    marks = MEDIA

    def read(self, row: Mapping[str, Any], draw: Draw) -> Fields:
        """The conversation and its sides as chat messages."""
        refuse_media(row)
        prompt = _messages(as_list(need(row, "conversations"), "conversations"), "conversations")
        prompt = with_system(prompt, system_of(row))
        sides = {side: _side(need(row, side), side) for side in ("chosen", "rejected")}
        return {"prompt": prompt, **sides, **extras(row)}


def _side(value: Any, name: str) -> Messages:
    if isinstance(value, str):
        return reply(value)
    return _messages(value if isinstance(value, list) else [value], name)


def _messages(turns: list[Any], name: str) -> Messages:
    return [_message(turn, f"{name}[{number}]") for number, turn in enumerate(turns)]


def _message(turn: Any, name: str) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise ValueError(f"{name} must be an object with 'from' and 'value', not {describe_value(turn)}")
    if turn.get("from") is None:
        if turn.get("role") is None:
            raise ValueError(f"{name} has neither 'from' nor 'role'; it has: {', '.join(turn):.200}")
        message = {key: value for key, value in turn.items() if value is not None}
        role = as_text(turn["role"], f"{name}.role")
        return message | {"role": _ROLES.get(role, role)}
    speaker = as_text(turn["from"], f"{name}.from")
    if speaker not in _ROLES:
        raise ValueError(f"{name} is from {speaker!r:.40}; there are: {', '.join(_ROLES)}")
    value = as_text(need(turn, "value"), f"{name}.value")
    if speaker == "function_call":
        return {"role": "assistant", "tool_calls": _calls(value, name)}
    return {"role": _ROLES[speaker], "content": value}


def _calls(text: str, name: str) -> list[dict[str, Any]]:
    """The calls of a `function_call`: JSON of an object with `name` and `arguments`, or of a list of such."""
    try:
        calls = json.loads(text)
    except ValueError as error:
        raise ValueError(f"the function_call {name} is not JSON: {error}") from error
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise ValueError(f"the function_call {name} must be an object with 'name' and 'arguments'")
    return [{"type": "function", "function": call} for call in calls]
