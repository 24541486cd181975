"""Check preference rows, and give each pair a stable id."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from automixalign.data.row_formats.row_format import DroppedRow, Fields
from automixalign.data.row_formats.shared.values import describe_value

Message: TypeAlias = dict[str, Any]
"""`role`, `content` and whatever else the chat template reads, such as `tool_calls`."""
Turn: TypeAlias = str | list[Message]
Options: TypeAlias = dict[str, Any]
"""What the chat template gets beside the messages: `tools` and `chat_template_kwargs`."""

TURNS = ("prompt", "chosen", "rejected")
_OPTIONS = ("tools", "chat_template_kwargs")
_MUST_SPEAK = ("user", "assistant")
"""Roles whose messages must hold text. A tool may return nothing, and a system message may be empty."""
_canonical = json.JSONEncoder(ensure_ascii=False, sort_keys=True, allow_nan=False).encode
_NUL_IN_JSON = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


class Pair(NamedTuple):
    """One preference: `chosen` is the better completion of `prompt`. All three are text, or all messages."""

    pair_id: str
    """16 hexadecimal digits: a digest of all that the model sees."""
    prompt: Turn
    chosen: Turn
    rejected: Turn
    answer: str | None = None
    options: Options | None = None
    derived: bool = False
    """Whether the prompt was split off the sides."""
    row: str | None = None
    """JSON of the columns that the task's verifier reads of the row."""

    @property
    def prompt_key(self) -> str:
        """Equal for prompts that differ only in case or white space; they belong in one split.

        Roles and texts count. The same question with other tools is still the same question.
        """
        return " ".join(text_of(self.prompt).casefold().split())


def flat(turn: Turn) -> str:
    """A text that is equal for equal turns alone. NUL, which no text holds, separates its parts."""
    if isinstance(turn, str):
        return turn
    if len(turn) == 1:
        return _flat_message(turn[0])
    return "\0".join([_flat_message(message) for message in turn])


def _flat_message(message: Message) -> str:
    if len(message) == 2 and (content := message.get("content")) and type(content) is str:
        return f"{message['role']}\0{content}"
    return f"\0{_canonical(message)}"


def text_of(turn: Turn) -> str:
    """The turn as plain text, for people; messages with their roles."""
    if isinstance(turn, str):
        return turn
    return "\n".join(f"{message['role']}: {content_text(message)}" for message in turn)


def texts_of(turn: Turn) -> list[str]:
    """The texts of a turn: itself, or those of its messages without their roles."""
    return [turn] if isinstance(turn, str) else [content_text(message) for message in turn]


def answer_text(turn: Turn) -> str:
    """An answer without its role: the text, or that of the last message."""
    return turn if isinstance(turn, str) else content_text(turn[-1])


def content_text(message: Message) -> str:
    """The text of a message: its content, or the texts of its content's parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content or ""


def make_pair(fields: Fields) -> Pair:
    """Check the fields of a row.

    Args:
        fields: as a row format returns them.

    Raises:
        DroppedRow: a turn is empty.
        ValueError: the fields are no preference; the text names the field.
    """
    for field in TURNS:
        if field not in fields:
            raise ValueError(f"the field {field!r} is missing")
    prompt = _turn(fields["prompt"], "prompt")
    chosen, rejected = _turn(fields["chosen"], "chosen"), _turn(fields["rejected"], "rejected")
    if isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str):
        options = _options(fields, conversational=False)
    elif isinstance(prompt, list) and isinstance(chosen, list) and isinstance(rejected, list):
        _check_order(prompt, chosen, rejected)
        options = _options(fields, conversational=True)
    else:
        raise ValueError("'prompt', 'chosen' and 'rejected' must all be text or all messages")
    answer = None if fields.get("answer") is None else _answer(fields["answer"])
    seen = f"{flat(prompt)}\0\0{flat(chosen)}\0\0{flat(rejected)}\0\0{_canonical(options) if options else ''}"
    try:
        digest = hashlib.sha256(seen.encode()).hexdigest()
    except UnicodeEncodeError as error:
        raise _half_surrogate(fields) from error
    return Pair(digest[:16], prompt, chosen, rejected, answer, options, fields.get("derived", False))


def make_prompt(fields: Fields) -> tuple[Turn, Options | None]:
    """Check a prompt without answers, and what the chat template gets beside it.

    Args:
        fields: `prompt`, and perhaps `tools` and `chat_template_kwargs`.

    Raises:
        DroppedRow: the prompt is empty.
        ValueError: it is none; the text names the field.
    """
    prompt = _turn(fields["prompt"], "prompt")
    if isinstance(prompt, list):
        _check_end(prompt)
    try:
        flat(prompt).encode()
    except UnicodeEncodeError as error:
        raise _half_surrogate({"prompt": fields["prompt"]}) from error
    return prompt, _options(fields, conversational=isinstance(prompt, list))


def _turn(value: Any, field: str) -> Turn:
    if isinstance(value, str):
        _check_text(value, field)
        return value
    if not isinstance(value, list) or not value:
        raise ValueError(f"{field!r} must be text or a list of messages, not {describe_value(value)}")
    return [_message(message, field, number) for number, message in enumerate(value)]


def _message(message: Any, field: str, number: int) -> Message:
    if (
        type(message) is dict
        and len(message) == 2
        and type(content := message.get("content")) is str
        and message.get("role") in _MUST_SPEAK
    ):
        if not content or content.isspace():
            raise DroppedRow("empty")
        if "\0" not in content:
            return message
    return _any_message(message, f"{field}[{number}]")


def _any_message(given: Any, name: str) -> Message:
    if not isinstance(given, dict) or not isinstance(given.get("role"), str):
        raise ValueError(f"{name} must be an object with 'role' and 'content'")
    # Tables give every message the fields of any; transformers removes nulls likewise.
    message: Message = {key: value for key, value in given.items() if value is not None}
    content, calls = message.get("content"), message.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        raise ValueError(f"the tool_calls of {name} must be a list of objects, not {describe_value(calls)}")
    if not calls:
        message.pop("tool_calls", None)
        if content is None:
            raise ValueError(f"{name} must be an object with 'role' and 'content'")
    if isinstance(content, list):
        _check_parts(content, name)
    elif content is not None and not isinstance(content, str):
        raise ValueError(f"the content of {name} must be text, not {describe_value(content)}")
    if not calls and message["role"] in _MUST_SPEAK and not content_text(message).strip():
        raise DroppedRow("empty")
    _check_json(message, name)
    return message


def _check_parts(content: list[Any], name: str) -> None:
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"{name} has a content part of type {kind!r:.40}; only text can be used")


def _check_json(value: Any, name: str) -> None:
    try:
        text = _canonical(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} holds a value that JSON does not allow: {error}") from error
    if _NUL_IN_JSON.search(text):
        raise ValueError(f"{name} holds a NUL, which is not text")


def _options(fields: Fields, conversational: bool) -> Options | None:
    """The options of the chat template that a row has."""
    if "tools" not in fields and "chat_template_kwargs" not in fields:
        return None
    options = {name: fields[name] for name in _OPTIONS if fields.get(name) not in (None, "", {})}
    if isinstance(tools := options.get("tools"), str):  # as in tables, whose columns have one type
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise ValueError(f"'tools' is not JSON: {error}") from error
        options["tools"] = tools
        if tools is None:
            del options["tools"]
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise ValueError("'tools' must be a list of objects, or such a list as JSON text")
    if not isinstance(options.get("chat_template_kwargs", {}), Mapping):
        raise ValueError("'chat_template_kwargs' must be an object")
    if not conversational:
        if filled := [name for name, value in options.items() if value]:
            raise ValueError(f"{filled[0]!r} is for a chat template, and this row is plain text")
        return None
    for name, value in options.items():
        _check_json(value, repr(name))
    return options or None


def _answer(answer: Any) -> str | None:
    if not isinstance(answer, str):
        raise ValueError(f"'answer' must be text, not {type(answer).__name__}")
    if not answer or answer.isspace():  # an empty cell of a CSV file
        return None
    _check_text(answer, "answer")
    try:
        answer.encode()
    except UnicodeEncodeError as error:
        raise _half_surrogate({"answer": answer}) from error
    return answer


def _check_text(text: str, name: str) -> None:
    if not text or text.isspace():
        raise DroppedRow("empty")
    if "\0" in text:
        raise ValueError(f"{name!r} holds a NUL, which is not text")


def _half_surrogate(fields: Fields) -> ValueError:
    """The error that names the field whose text has no encoding."""
    name = next(name for name, value in fields.items() if not _has_encoding(value))
    return ValueError(f"{name!r} holds half a surrogate pair, which is not text")


def _has_encoding(value: Any) -> bool:
    try:
        (value if isinstance(value, str) else _canonical(value)).encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_end(prompt: list[Message]) -> None:
    if prompt[-1]["role"] != "user" and "user" not in [message["role"] for message in prompt]:
        raise ValueError("'prompt' holds no user message")
    if prompt[-1]["role"] == "assistant":
        raise ValueError("'prompt' must end before the assistant's turn")


def _check_order(prompt: list[Message], chosen: list[Message], rejected: list[Message]) -> None:
    _check_end(prompt)
    for field, turn in (("chosen", chosen), ("rejected", rejected)):
        if turn[0]["role"] != "assistant" or turn[-1]["role"] != "assistant":
            raise ValueError(
                f"{field!r} must begin and end with an assistant message; if it repeats the prompt, "
                "set 'format: ultrafeedback'"
            )


def sides_are_same(pair: Pair) -> bool:
    """Whether the sides are equal, apart from blanks around their texts."""
    return _stripped(pair.chosen) == _stripped(pair.rejected)


def _stripped(turn: Turn) -> str | list[Any]:
    if isinstance(turn, str):
        return turn.strip()
    return [{**message, "content": content_text(message).strip()} for message in turn]
