"""Columns beside the prompt that change what the model must see: the system message, and media."""

from collections.abc import Mapping
from typing import Any

from automixalign.data.row_formats.row_format import Messages
from automixalign.data.row_formats.shared.values import as_text

SYSTEM = ("system", "system_prompt", "system_message")
"""Names of the column with the system message."""
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
"""Columns of media, which no format can use."""


def system_of(row: Mapping[str, Any]) -> str:
    """The system message of a row; empty if there is none.

    Raises:
        ValueError: it is no text, or two columns hold different ones.
    """
    given = {name: text for name in SYSTEM if (text := as_text(row.get(name) or "", name)).strip()}
    if len(set(given.values())) > 1:
        names = list(given)
        raise ValueError(f"{names[0]!r} and {names[1]!r} differ; one system message can be used")
    return next(iter(given.values()), "")


def with_system(prompt: Messages, system: str) -> Messages:
    """The prompt after the system message, unless there is none or the prompt holds it already."""
    if not system.strip() or holds_system(prompt, system):
        return prompt
    return [{"role": "system", "content": system}, *prompt]


def holds_system(prompt: Messages, system: str) -> bool:
    """Whether a message of the prompt says the same as the system message."""
    return any(
        isinstance(message, dict)
        and isinstance(content := message.get("content"), str)
        and content.strip() == system.strip()
        for message in prompt
        if not isinstance(message, dict) or message.get("role") != "user"
    )


def refuse_media(row: Mapping[str, Any]) -> None:
    """Refuse a row with images, videos or sounds.

    Raises:
        ValueError: it has some.
    """
    for name in MEDIA:
        if row.get(name):
            raise ValueError(f"the row has {name!r}; only text can be used")
