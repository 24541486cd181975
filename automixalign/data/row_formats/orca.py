"""A question and two answers as text: Intel/orca_dpo_pairs and argilla/distilabel-intel-orca-dpo-pairs."""

from collections.abc import Mapping
from typing import Any

from automixalign.data.row_formats.registry import register
from automixalign.data.row_formats.row_format import Draw, DroppedRow, Fields, RowFormat, messages, reply
from automixalign.data.row_formats.shared.beside import MEDIA, SYSTEM, refuse_media, system_of
from automixalign.data.row_formats.shared.values import need_one_of, need_text


@register("orca")
class Orca(RowFormat):
    """`question`, `input` or `prompt`, `chosen` and `rejected`, perhaps `system`; a `status` may be `tie`."""

    columns = ("prompt", "question", "input", *SYSTEM, "chosen", "rejected", "status", "answer", *MEDIA)
    optional = ("prompt", "question", "input", *SYSTEM, "status", "answer", *MEDIA)
    marks = MEDIA

    def read(self, row: Mapping[str, Any], draw: Draw) -> Fields:
        """The question after the system message, and its answers."""
        refuse_media(row)
        if row.get("status") == "tie":
            raise DroppedRow("tie")
        asked = need_text(row, need_one_of(row, ("prompt", "question", "input")))
        return {
            "prompt": messages(asked, system_of(row)),
            "chosen": reply(need_text(row, "chosen")),
            "rejected": reply(need_text(row, "rejected")),
            **({"answer": row["answer"]} if "answer" in row else {}),
        }
