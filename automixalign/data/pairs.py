"""Parse rows of TRL's preference formats into pairs with a stable id.

Formats: https://huggingface.co/docs/trl/dataset_formats#preference, as messages or plain text. The prompt is a
field of its own, or the part with which both sides begin.
"""

import hashlib
import json
import re
from typing import Any, NamedTuple, TypeAlias

from automixalign.data.read import Row
from automixalign.system.errors import DataError

Message: TypeAlias = dict[str, str]
Turn: TypeAlias = str | list[Message]

TURNS = ("prompt", "chosen", "rejected")
_ROLES = ("system", "user", "assistant", "tool")
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_canonical = json.JSONEncoder(ensure_ascii=True, sort_keys=True).encode


class Pair(NamedTuple):
    """One preference: `chosen` is the better completion of `prompt`. All three are text, or all messages."""

    pair_id: str
    prompt: Turn
    chosen: Turn
    rejected: Turn
    answer: str | None = None

    @property
    def prompt_key(self) -> str:
        """Equal for prompts that differ only in case or white space; they belong in one split."""
        return " ".join(text_of(self.prompt).casefold().split())


def text_of(turn: Turn) -> str:
    """The turn as plain text; messages with their roles."""
    if isinstance(turn, str):
        return turn
    return "\n".join(f"{message['role']}: {message['content']}" for message in turn)


def parse_row(row: Row) -> Pair:
    """Check one row and parse it.

    Raises:
        DataError: the row is no preference pair; the message names file, line and field.
    """
    data, where = row.data, row.where
    if not isinstance(data, dict):
        raise DataError(f"{where}: a JSON object is needed, not {type(data).__name__}")
    for field in ("chosen", "rejected"):
        if field not in data:
            raise DataError(f"{where}: the field {field!r} is missing")
    chosen = _turn(data["chosen"], "chosen", where)
    rejected = _turn(data["rejected"], "rejected", where)
    if "prompt" in data:
        prompt = _turn(data["prompt"], "prompt", where)
        if len({isinstance(turn, str) for turn in (prompt, chosen, rejected)}) > 1:
            raise DataError(f"{where}: 'prompt', 'chosen' and 'rejected' must all be text or all messages")
    else:
        prompt, chosen, rejected = _split_common_start(chosen, rejected, where)
    if not isinstance(prompt, str):
        _check_order(prompt, chosen, rejected, where)
    answer = data.get("answer")
    if answer is not None and not isinstance(answer, str):
        raise DataError(f"{where}: 'answer' must be text, not {type(answer).__name__}")
    if answer is not None:
        _check_text(answer, "answer", where)
    pair_id = hashlib.sha256(_canonical([prompt, chosen, rejected]).encode()).hexdigest()[:16]
    return Pair(pair_id, prompt=prompt, chosen=chosen, rejected=rejected, answer=answer)


def _turn(value: Any, field: str, where: str) -> Turn:
    if isinstance(value, str):
        _check_text(value, field, where)
        return value
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: {field!r} must be text or a list of messages, not {_describe(value)}")
    messages = []
    for number, message in enumerate(value):
        name = f"{field}[{number}]"
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise DataError(f"{where}: {name} must be an object with 'role' and 'content'")
        if message["role"] not in _ROLES:
            role = _describe(message["role"])
            raise DataError(f"{where}: {name} has the role {role}; there are: {', '.join(_ROLES)}")
        if not isinstance(message["content"], str):
            raise DataError(f"{where}: the content of {name} must be text")
        _check_text(message["content"], name, where)
        messages.append({"role": message["role"], "content": message["content"]})
    return messages


def _describe(value: Any) -> str:
    """A value for a message. A list or an object may be large and deep, so only its type is named."""
    if isinstance(value, (list, dict)):
        return f"{'a' if value else 'an empty'} {type(value).__name__}"
    return f"{value!r:.40}"


def _check_text(text: str, field: str, where: str) -> None:
    if not text.strip():
        raise DataError(f"{where}: {field} is empty")
    if _NO_TEXT.search(text):
        raise DataError(f"{where}: {field} holds a NUL or half a surrogate pair, which is not text")


def _split_common_start(chosen: Turn, rejected: Turn, where: str) -> tuple[Turn, Turn, Turn]:
    """Cut off the prompt: the messages, or the text up to the last blank, with which both sides begin."""
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise DataError(f"{where}: 'chosen' and 'rejected' must both be text or both messages")
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
        raise DataError(f"{where}: there is no 'prompt', and the two sides do not begin alike")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _check_order(prompt: Turn, chosen: Turn, rejected: Turn, where: str) -> None:
    roles = [message["role"] for message in prompt if isinstance(message, dict)]
    if "user" not in roles:
        raise DataError(f"{where}: 'prompt' holds no user message")
    if "system" in roles[1:]:
        raise DataError(f"{where}: a system message may only open the prompt")
    if roles[-1] == "assistant":
        raise DataError(f"{where}: 'prompt' must end before the assistant's turn")
    for field, turn in (("chosen", chosen), ("rejected", rejected)):
        roles = [message["role"] for message in turn if isinstance(message, dict)]
        if roles[0] != "assistant" or roles[-1] != "assistant":
            raise DataError(f"{where}: {field!r} must begin and end with an assistant message")
        if "system" in roles:
            raise DataError(f"{where}: a system message may only open the prompt, and {field!r} holds one")


def sides_are_same(pair: Pair) -> bool:
    """Whether the sides are equal, apart from blanks around their texts."""
    return _stripped(pair.chosen) == _stripped(pair.rejected)


def _stripped(turn: Turn) -> str | list[tuple[str, str]]:
    if isinstance(turn, str):
        return turn.strip()
    return [(message["role"], message["content"].strip()) for message in turn]
