"""Find the parts of a conversation that a chat template leaves out, so that the model never sees them."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from automixalign.data.pairs import Message, Pair
from automixalign.data.tokenization.rendering import Texts

_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
_THOUGHT_MARKS = re.compile("</?think>")


def lost_text(pair: Pair, texts: Texts) -> str | None:
    """The name of the first part of a pair that its rendering lacks, such as `content of prompt[0] (system)`.

    Blanks around a text do not count, and a text may be rendered as JSON. A tool call is looked for by its name
    and the values of its arguments, a tool by its name. A short text may be found by chance.

    Args:
        pair: of messages.
        texts: what it was rendered to.
    """
    for number, tool in enumerate((pair.options or {}).get("tools") or ()):
        if not _holds(texts.chosen, name := _name(tool)):
            return f"tools[{number}] {name}"
    turns = (("prompt", texts.chosen), ("chosen", texts.chosen), ("rejected", texts.rejected))
    for field, rendering in turns:
        messages: Any = getattr(pair, field)
        for number, message in enumerate(messages):
            content = message.get("content")
            if len(message) == 2 and type(content) is str and content.strip() in rendering:
                continue
            if lost := _lost_part(message, rendering):
                return f"{lost} of {field}[{number}] ({message['role']})"
    return None


def _lost_part(message: Message, rendering: str) -> str | None:
    for name in ("content", *_REASONING_FIELDS):
        value = message.get(name)
        for text in [part["text"] for part in value] if isinstance(value, list) else _leaves(value):
            # Templates set thoughts apart, so the blanks around their marks may change.
            parts = _THOUGHT_MARKS.split(text)
            if not (_holds(rendering, text) or all(_holds(rendering, part) for part in parts)):
                return name
    calls = message.get("tool_calls", [])
    for call in calls if isinstance(calls, list) else [calls]:
        if not all(_holds(rendering, text) for text in (_name(call), *_arguments(call))):
            return "tool_calls"
    return None


def _function(call: Any) -> dict[str, Any]:
    """The part of a tool or of a call that holds its name."""
    function = call.get("function", call) if isinstance(call, dict) else None
    return function if isinstance(function, dict) else {}


def _name(call: Any) -> str:
    return str(_function(call).get("name", ""))


def _arguments(call: Any) -> Iterator[str]:
    """The values of a call's arguments, which may be JSON text."""
    arguments = _function(call).get("arguments")
    if isinstance(arguments, str):
        with suppress(ValueError):
            arguments = json.loads(arguments)
    return _leaves(arguments)


def _leaves(value: Any) -> Iterator[str]:
    """The texts and numbers in a JSON value, as text."""
    if isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _leaves(each)
    elif isinstance(value, (str, int, float)) and not isinstance(value, bool):
        yield str(value)


def _holds(rendering: str, text: str) -> bool:
    text = text.strip()
    if text in rendering:
        return True
    # As JSON, as JSON in a text of JSON, and as Python writes it.
    once = json.dumps(text, ensure_ascii=False)[1:-1]
    forms = (once, json.dumps(text)[1:-1], json.dumps(once, ensure_ascii=False)[1:-1], repr(text)[1:-1])
    return any(form in rendering for form in forms)
