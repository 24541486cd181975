"""Check preference rows, and give each pair a stable id."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from automixalign.data.row_formats.row_format import DroppedRow, Fields

Message: TypeAlias = dict[str, Any]
"""`role`, `content` and whatever else the chat template reads, such as `tool_calls`."""
Turn: TypeAlias = str | list[Message]
Options: TypeAlias = dict[str, Any]
"""What the chat template gets beside the messages: `tools` and `chat_template_kwargs`, where the row has them."""

TURNS = ("prompt", "chosen", "rejected")
_OPTIONS = ("tools", "chat_template_kwargs")
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_canonical = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode


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

    @property
    def prompt_key(self) -> str:
        """Equal for prompts that differ only in case or white space; they belong in one split."""
        return " ".join(flat(self.prompt).casefold().split())


def flat(turn: Turn) -> str:
    """A text that is equal for equal turns alone. NUL, which no text holds, separates its parts."""
    if isinstance(turn, str):
        return turn
    return "\0".join([_flat_message(message) for message in turn])


def _flat_message(message: Message) -> str:
    content = message.get("content")
    if len(message) == 2 and type(content) is str:
        return f"{message['role']}\0{content}"
    return f"\0{_canonical(message)}"


def text_of(turn: Turn) -> str:
    """The turn as plain text, for people; messages with their roles."""
    if isinstance(turn, str):
        return turn
    return "\n".join(f"{message['role']}: {content_text(message)}" for message in turn)


def content_text(message: Message) -> str:
    """The text of a message: its content, or the texts of its content's parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content or ""


def make_pair(fields: Fields) -> Pair:
    """Check the fields of a row.

    Raises:
        DroppedRow: a turn is empty.
        ValueError: the fields are no preference; the text names the field.
    """
    for field in ("chosen", "rejected"):
        if field not in fields:
            raise ValueError(f"the field {field!r} is missing")
    chosen, rejected = _turn(fields["chosen"], "chosen"), _turn(fields["rejected"], "rejected")
    derived = fields.get("derived", False)
    if "prompt" in fields:
        prompt = _turn(fields["prompt"], "prompt")
        if len({isinstance(turn, str) for turn in (prompt, chosen, rejected)}) > 1:
            raise ValueError("'prompt', 'chosen' and 'rejected' must all be text or all messages")
    else:
        prompt, chosen, rejected = _split_common_start(chosen, rejected)
        derived = True
    if not isinstance(prompt, str):
        _check_order(prompt, chosen, rejected)
    answer = fields.get("answer")
    if answer is not None:
        if not isinstance(answer, str):
            raise ValueError(f"'answer' must be text, not {type(answer).__name__}")
        _check_text(answer, "answer")
    options = _options(fields, conversational=not isinstance(prompt, str))
    identity = "\0\0".join([flat(prompt), flat(chosen), flat(rejected), _canonical(options) if options else ""])
    pair_id = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return Pair(pair_id, prompt, chosen, rejected, answer, options, derived)


def _turn(value: Any, field: str) -> Turn:
    if isinstance(value, str):
        _check_text(value, field)
        return value
    if not isinstance(value, list) or not value:
        raise ValueError(f"{field!r} must be text or a list of messages, not {_describe(value)}")
    return [_message(message, field, number) for number, message in enumerate(value)]


def _message(message: Any, field: str, number: int) -> Message:
    name = f"{field}[{number}]"
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ValueError(f"{name} must be an object with 'role' and 'content'")
    content = message.get("content")
    if type(content) is str and len(message) == 2:
        _check_text(content, name)
        return message
    # Tables give every message the fields of any; transformers removes nulls likewise.
    message = {key: value for key, value in message.items() if value is not None}
    if "content" not in message and not message.get("tool_calls"):
        raise ValueError(f"{name} must be an object with 'role' and 'content'")
    if isinstance(content, list):
        for part in content:
            if (
                not isinstance(part, dict)
                or part.get("type") != "text"
                or not isinstance(part.get("text"), str)
            ):
                kind = part.get("type") if isinstance(part, dict) else type(part).__name__
                raise ValueError(f"{name} has a content part of type {kind!r:.40}; only text can be used")
    elif content is not None and not isinstance(content, str):
        raise ValueError(f"the content of {name} must be text, not {_describe(content)}")
    if not message.get("tool_calls") and not content_text(message).strip():
        raise DroppedRow("empty")
    _check_json(message, name)
    return message


def _check_json(value: Any, name: str) -> None:
    try:
        text = _canonical(value)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} holds what JSON cannot: {error}") from error
    if "\\u0000" in text:
        raise ValueError(f"{name} holds a NUL, which is not text")


def _options(fields: Fields, conversational: bool) -> Options | None:
    """The options of the chat template that a row has."""
    options = {name: fields[name] for name in _OPTIONS if fields.get(name)}
    if not options:
        return None
    if not conversational:
        raise ValueError(f"{next(iter(options))!r} is for a chat template, and this row is plain text")
    if isinstance(tools := options.get("tools"), str):  # as in tables, whose columns have one type
        try:
            options["tools"] = tools = json.loads(tools)
        except ValueError as error:
            raise ValueError(f"'tools' is no JSON: {error}") from error
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise ValueError("'tools' must be a list of objects, or such a list as JSON text")
    if not isinstance(options.get("chat_template_kwargs", {}), Mapping):
        raise ValueError("'chat_template_kwargs' must be an object")
    for name, value in options.items():
        _check_json(value, repr(name))
    return options


def _describe(value: Any) -> str:
    """A value for a message. A list or an object may be large and deep, so only its type is named."""
    if isinstance(value, (list, dict)):
        return f"{'a' if value else 'an empty'} {type(value).__name__}"
    return f"{value!r:.40}"


def _check_text(text: str, name: str) -> None:
    if not text.strip():
        raise DroppedRow("empty")
    if _NO_TEXT.search(text):
        raise ValueError(f"{name} holds a NUL or half a surrogate pair, which is not text")


def _split_common_start(chosen: Turn, rejected: Turn) -> tuple[Turn, Turn, Turn]:
    """Cut off the prompt: the messages, or the text up to the last blank, with which both sides begin."""
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise ValueError("'chosen' and 'rejected' must both be text or both messages")
    if isinstance(chosen, str) and _HH_TURN.search(chosen):
        raise ValueError("there is no 'prompt', and the text is a dialogue; set 'format: hh-rlhf'")
    shared = 0
    for left, right in zip(chosen, rejected, strict=False):
        if left != right:
            break
        shared += 1
    if isinstance(chosen, str) and isinstance(rejected, str):
        if chosen != rejected:  # a side that is the beginning of the other must keep some text
            shared = min(shared, len(chosen.rstrip()) - 1, len(rejected.rstrip()) - 1)
        shared = chosen.rfind(" ", 0, shared) if " " in chosen[:shared] else shared
    else:
        # Equal sides keep their last message, so that the pair is counted as identical.
        shared = min(shared, len(chosen) - 1, len(rejected) - 1)
    if shared <= 0 or (isinstance(chosen, str) and not chosen[:shared].strip()):
        raise ValueError("there is no 'prompt', and the two sides do not begin alike")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _check_order(prompt: Turn, chosen: Turn, rejected: Turn) -> None:
    roles = [message["role"] for message in prompt if isinstance(message, dict)]
    if "user" not in roles:
        raise ValueError("'prompt' holds no user message")
    if roles[-1] == "assistant":
        raise ValueError("'prompt' must end before the assistant's turn")
    for field, turn in (("chosen", chosen), ("rejected", rejected)):
        roles = [message["role"] for message in turn if isinstance(message, dict)]
        if roles[0] != "assistant" or roles[-1] != "assistant":
            raise ValueError(f"{field!r} must begin and end with an assistant message")


def sides_are_same(pair: Pair) -> bool:
    """Whether the sides are equal, apart from blanks around their texts."""
    return _stripped(pair.chosen) == _stripped(pair.rejected)


def _stripped(turn: Turn) -> str | list[Any]:
    if isinstance(turn, str):
        return turn.strip()
    return [{**message, "content": content_text(message).strip()} for message in turn]
