"""Questions and answers as text or messages; the format of sources that map `columns`."""

from collections.abc import Mapping
from typing import Any

from automixalign.data.row_formats.registry import register
from automixalign.data.row_formats.row_format import Draw, Fields, RowFormat, messages, reply


@register("chat")
class Chat(RowFormat):
    """`prompt`, `chosen`, `rejected` and perhaps `system`. Texts become messages."""

    columns = ("prompt", "chosen", "rejected", "system", "answer", "tools", "chat_template_kwargs")
    optional = ("system", "answer", "tools", "chat_template_kwargs")

    def read(self, row: Mapping[str, Any], draw: Draw) -> Fields:
        """The fields with their texts as messages."""
        fields = {name: row[name] for name in self.columns if name in row and name != "system"}
        if isinstance(prompt := fields.get("prompt"), str):
            fields["prompt"] = messages(prompt, row.get("system"))
        elif row.get("system") and isinstance(prompt, list):
            fields["prompt"] = [{"role": "system", "content": row["system"]}, *prompt]
        for side in ("chosen", "rejected"):
            if isinstance(fields.get(side), str):
                fields[side] = reply(fields[side])
        return fields
