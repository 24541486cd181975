"""Sides as whole conversations that repeat the prompt.

As in HuggingFaceH4/ultrafeedback_binarized, trl-lib/ultrafeedback_binarized and Tulu's preferences.
"""

from collections.abc import Mapping
from typing import Any

from automixalign.data.row_formats.registry import register
from automixalign.data.row_formats.row_format import (
    EXTRAS,
    Draw,
    DroppedRow,
    Fields,
    Messages,
    RowFormat,
    extras,
    messages,
)
from automixalign.data.row_formats.shared.beside import MEDIA, SYSTEM, refuse_media, system_of, with_system
from automixalign.data.row_formats.shared.common_start import shared_messages
from automixalign.data.row_formats.shared.values import as_list, as_number, as_turn, need
from automixalign.system.schema import NonNegative

_SCORES = ("score_chosen", "score_rejected")


@register("ultrafeedback")
class UltraFeedback(RowFormat):
    """`chosen` and `rejected` as messages that begin with the prompt, perhaps `prompt` and scores."""

    min_gap: NonNegative = 0
    """The smallest difference of `score_chosen` and `score_rejected`. Equal scores are a tie in any case."""

    columns = ("prompt", "chosen", "rejected", *_SCORES, *SYSTEM, *EXTRAS, *MEDIA)
    optional = ("prompt", *_SCORES, *SYSTEM, *EXTRAS, *MEDIA)
    marks = MEDIA

    def read(self, row: Mapping[str, Any], draw: Draw) -> Fields:
        """The sides without the prompt that they repeat."""
        refuse_media(row)
        self._check_scores(row)
        chosen, rejected = _side(row, "chosen"), _side(row, "rejected")
        shared = shared_messages(chosen, rejected)
        fields = {"chosen": chosen[shared:], "rejected": rejected[shared:], **extras(row)}
        if "prompt" in row:
            prompt = _checked(as_turn(need(row, "prompt")), chosen[:shared], chosen)
            return fields | {"prompt": with_system(prompt, system_of(row))}
        if not shared:
            raise ValueError("the two sides do not begin with the same prompt")
        return fields | {"prompt": with_system(chosen[:shared], system_of(row)), "derived": True}

    def _check_scores(self, row: Mapping[str, Any]) -> None:
        chosen, rejected = (as_number(row.get(name), name) for name in _SCORES)
        if chosen is None or rejected is None:
            if not self.min_gap:
                return
            for name in _SCORES:
                if name not in row:
                    need(row, name)
            raise DroppedRow("unrated")
        if chosen == rejected:
            raise DroppedRow("tie")
        if self.min_gap and chosen - rejected < self.min_gap:
            raise DroppedRow("small_gap")


def _side(row: Mapping[str, Any], name: str) -> Messages:
    side = as_turn(need(row, name))
    if isinstance(side, str):
        raise ValueError(f"{name!r} must be a list of messages; for sides of text, set 'format: chat'")
    return as_list(side, name)


def _checked(prompt: Any, start: Messages, side: Messages) -> Messages:
    """The common start of the sides, which must be the row's prompt; or that prompt, if no side repeats it."""
    if not start and _role(side[:1]) != "user":
        return messages(prompt) if isinstance(prompt, str) else as_list(prompt, "prompt")
    if isinstance(prompt, str):
        asked = [_text(message) for message in start if _role([message]) == "user"]
        is_prompt = prompt.strip() in (asked[:1] + asked[-1:])
    else:
        given = as_list(prompt, "prompt")
        is_prompt = bool(start) and start[: len(given)] == given
    if not is_prompt:
        raise ValueError("'chosen' and 'rejected' do not begin with the 'prompt' of the row")
    return start


def _role(side: Messages) -> Any:
    return side[0].get("role") if side and isinstance(side[0], dict) else None


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    return content.strip() if isinstance(content, str) else ""
