"""Questions and answers as text or messages; the format of sources that map `columns`."""

from collections.abc import Mapping
from typing import Any

from automixalign.data.row_formats.registry import register
from automixalign.data.row_formats.row_format import EXTRAS, Draw, Fields, RowFormat, extras, messages, reply
from automixalign.data.row_formats.shared.beside import MEDIA, SYSTEM, refuse_media, system_of, with_system
from automixalign.data.row_formats.shared.values import as_turn, need


@register("chat")
class Chat(RowFormat):
    """`prompt`, `chosen`, `rejected` and perhaps `system`. Texts become messages."""

    columns = ("prompt", "chosen", "rejected", *SYSTEM, *EXTRAS, *MEDIA)
    optional = (*SYSTEM, *EXTRAS, *MEDIA)
    marks = MEDIA

    def read(self, row: Mapping[str, Any], draw: Draw) -> Fields:
        """The fields with their texts as messages."""
        prompt, chosen, rejected = (as_turn(need(row, name)) for name in ("prompt", "chosen", "rejected"))
        refuse_media(row)
        if isinstance(prompt, str):
            prompt = messages(prompt)
        if isinstance(prompt, list):
            prompt = with_system(prompt, system_of(row))
        return {
            "prompt": prompt,
            "chosen": reply(chosen) if isinstance(chosen, str) else chosen,
            "rejected": reply(rejected) if isinstance(rejected, str) else rejected,
            **extras(row),
        }
