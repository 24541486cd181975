"""A question and two answers as text: Intel/orca_dpo_pairs and argilla/distilabel-intel-orca-dpo-pairs."""

from collections.abc import Mapping
from typing import Any

from automixalign.data.row_formats.registry import register
from automixalign.data.row_formats.row_format import Draw, DroppedRow, Fields, RowFormat, messages, reply
from automixalign.data.row_formats.shared.values import as_text, need_one_of, need_text


@register("orca")
class Orca(RowFormat):
    """`question`, `input` or `prompt`, `chosen` and `rejected`, perhaps `system`; a `status` may be `tie`."""

    columns = ("prompt", "question", "input", "system", "chosen", "rejected", "status", "answer")
    optional = ("prompt", "question", "input", "system", "status", "answer")

    def read(self, row: Mapping[str, Any], draw: Draw) -> Fields:
        """The question after the system message, and its answers."""
        if row.get("status") == "tie":
            raise DroppedRow("tie")
        asked = need_text(row, need_one_of(row, ("prompt", "question", "input")))
        return {
            "prompt": messages(asked, as_text(row.get("system") or "", "system")),
            "chosen": reply(need_text(row, "chosen")),
            "rejected": reply(need_text(row, "rejected")),
            **({"answer": row["answer"]} if "answer" in row else {}),
        }
