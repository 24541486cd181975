"""TRL's preference formats, as messages or plain text: https://huggingface.co/docs/trl/dataset_formats."""

from collections.abc import Mapping
from typing import Any

from automixalign.data.row_formats.registry import register
from automixalign.data.row_formats.row_format import Draw, Fields, RowFormat

CONTEXT = ("question", "instruction", "input", "system", "context")
"""Columns that hold a part of the prompt in other layouts; beside them, no prompt is guessed."""


@register("trl")
class Trl(RowFormat):
    """`prompt`, `chosen` and `rejected`. Without `prompt`, it is what both sides begin with."""

    columns = ("prompt", "chosen", "rejected", "answer", "tools", "chat_template_kwargs", *CONTEXT)
    optional = ("prompt", "answer", "tools", "chat_template_kwargs", *CONTEXT)

    def read(self, row: Mapping[str, Any], draw: Draw) -> Fields:
        """The row itself."""
        if "prompt" not in row and (context := [name for name in CONTEXT if name in row]):
            raise ValueError(
                f"there is no 'prompt', and the column {context[0]!r} would be lost; name the 'format' that "
                "reads it, or map 'columns'"
            )
        return {name: row[name] for name in self.columns[:6] if name in row}
