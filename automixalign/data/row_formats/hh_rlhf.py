"""Dialogues as text, as in Anthropic/hh-rlhf and Dahoas/full-hh-rlhf."""

from collections.abc import Mapping
from typing import Any

from automixalign.data.row_formats.registry import register
from automixalign.data.row_formats.row_format import Draw, DroppedRow, Fields, RowFormat
from automixalign.data.row_formats.shared.common_start import shared_messages
from automixalign.data.row_formats.shared.dialogue import parse_dialogue
from automixalign.data.row_formats.shared.values import as_text, need, need_text


@register("hh-rlhf")
class HhRlhf(RowFormat):
    r"""`chosen` and `rejected` as `\n\nHuman: ...\n\nAssistant: ...`; a `prompt` stands before both,
    unless they repeat it.

    The prompt is all turns up to the last of `Human:` that both sides share. Answers are never split.
    """

    columns = ("chosen", "rejected", "prompt", "answer")
    optional = ("prompt", "answer")

    def read(self, row: Mapping[str, Any], draw: Draw) -> Fields:
        """The dialogues as messages, split after the last turn that both sides share."""
        before = as_text(need(row, "prompt"), "prompt") if "prompt" in row else ""
        chosen, rejected = (
            parse_dialogue(text if before.strip() and text.startswith(before.rstrip()) else before + text)
            for text in (need_text(row, side) for side in ("chosen", "rejected"))
        )
        if {chosen[-1]["role"], rejected[-1]["role"]} != {"assistant"}:
            raise DroppedRow("no_answer")
        shared = shared_messages(chosen, rejected)
        if not shared:
            raise DroppedRow("different_prompts")
        return {
            "prompt": chosen[:shared],
            "chosen": chosen[shared:],
            "rejected": rejected[shared:],
            "derived": "prompt" not in row,
            **({"answer": row["answer"]} if "answer" in row else {}),
        }
