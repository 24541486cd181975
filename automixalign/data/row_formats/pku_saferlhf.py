"""Two responses with two labels, as in PKU-Alignment/PKU-SafeRLHF and its earlier versions."""

from collections.abc import Mapping
from typing import Any, Literal

from automixalign.data.row_formats.registry import register
from automixalign.data.row_formats.row_format import Draw, DroppedRow, Fields, RowFormat, messages, reply
from automixalign.data.row_formats.shared.values import as_number, need, need_text

_LABELS = {"helpful": "better_response_id", "safe": "safer_response_id"}


@register("pku-saferlhf")
class PkuSafeRlhf(RowFormat):
    """`prompt`, `response_0`, `response_1`, and the id of the better and of the safer response."""

    label: Literal["helpful", "safe"] = "helpful"
    """Prefer the more helpful response (`better_response_id`) or the safer one (`safer_response_id`)."""

    columns = ("prompt", "response_0", "response_1", *_LABELS.values())
    optional = tuple(_LABELS.values())

    def read(self, row: Mapping[str, Any], draw: Draw) -> Fields:
        """The response that the label names, against the other."""
        name = _LABELS[self.label]
        if name not in row:
            need(row, name)
        prompt, first, second = (need_text(row, field) for field in ("prompt", "response_0", "response_1"))
        better = as_number(row[name], name)
        if better is None or better == -1:
            raise DroppedRow("tie")
        if better not in (0, 1):
            raise ValueError(f"{name!r} must be 0 or 1, or -1 for a tie, not {better:g}")
        chosen, rejected = (second, first) if better else (first, second)
        return {"prompt": messages(prompt), "chosen": reply(chosen), "rejected": reply(rejected)}
