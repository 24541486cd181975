"""Read dialogues that are one text: turns after `Human:` and `Assistant:`, as in Anthropic's data."""

import re

from automixalign.data.row_formats.row_format import Messages

_TURN = re.compile(r"(?:\r?\n){2}(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def is_dialogue(text: str) -> bool:
    """Whether a text begins with a turn of `Human:` and may hold more turns."""
    return text.lstrip().startswith("Human:")


def has_turns(text: str) -> bool:
    """Whether a text holds a turn of `Human:` or `Assistant:`."""
    return is_dialogue(text) or _TURN.search(text) is not None


def parse_dialogue(text: str) -> Messages:
    """The turns of a dialogue as messages, without the blanks around them.

    Turns of one role in a row become one message, as most chat templates demand.

    Raises:
        ValueError: the text does not begin with `Human:`.
    """
    if not is_dialogue(text):
        raise ValueError(f"the dialogue must begin with 'Human:', not with {text.lstrip()[:20]!r}")
    _, *parts = _TURN.split("\n\n" + text.lstrip())
    turns: Messages = []
    for name, content in zip(parts[::2], parts[1::2], strict=True):
        role, content = _ROLES[name], content.strip()  # noqa: PLW2901
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] = f"{turns[-1]['content']}\n\n{content}".strip()
        else:
            turns.append({"role": role, "content": content})
    return turns
