"""TRL's preference formats, as messages or plain text: https://huggingface.co/docs/trl/dataset_formats."""

from collections.abc import Mapping
from typing import Any

from automixalign.data.row_formats.registry import register
from automixalign.data.row_formats.row_format import EXTRAS, Draw, DroppedRow, Fields, RowFormat
from automixalign.data.row_formats.shared.beside import MEDIA, SYSTEM, holds_system, refuse_media, system_of
from automixalign.data.row_formats.shared.common_start import shared_messages, shared_text
from automixalign.data.row_formats.shared.dialogue import has_turns
from automixalign.data.row_formats.shared.layouts import CONTEXT, MARKS, UNREAD, advice
from automixalign.data.row_formats.shared.values import as_turn, describe_value, need

_FIELDS = ("prompt", "chosen", "rejected", *EXTRAS)


@register("trl")
class Trl(RowFormat):
    """`prompt`, `chosen` and `rejected`. Without a column `prompt`, it is what both sides begin with."""

    marks = tuple(name for name in dict.fromkeys((*CONTEXT, *UNREAD, *MARKS, *MEDIA)) if name not in _FIELDS)
    columns = (*_FIELDS, *marks)
    optional = ("prompt", *EXTRAS, *marks)

    def read(self, row: Mapping[str, Any], draw: Draw) -> Fields:
        """The row's own fields. A row of another layout is refused, with the format that reads it."""
        fields = {name: row[name] if name in EXTRAS else as_turn(row[name]) for name in _FIELDS if name in row}
        for side in ("chosen", "rejected"):
            if fields.get(side) is None:
                _refuse_missing(row, side)
        refuse_media(row)
        if "prompt" in fields:
            _check_kinds(row, fields)
            return fields
        names = CONTEXT if _are_lists(fields) else (*CONTEXT, *UNREAD)
        if context := [name for name in names if row.get(name) not in (None, "")]:
            what = "set 'format: ultrafeedback'" if _are_lists(fields) else advice(row.keys())
            raise ValueError(f"there is no 'prompt', and the column {context[0]!r} would be lost; {what}")
        return fields | _guess(fields["chosen"], fields["rejected"])


def _are_lists(fields: Fields) -> bool:
    return isinstance(fields["chosen"], list) and isinstance(fields["rejected"], list)


def _refuse_missing(row: Mapping[str, Any], name: str) -> None:
    try:
        need(row, name)
    except ValueError as error:
        raise ValueError(f"{error}" if name in row else f"{error}; {advice(row.keys())}") from None


def _check_kinds(row: Mapping[str, Any], fields: Fields) -> None:
    need(row, "prompt")
    prompt, chosen, rejected = fields["prompt"], fields["chosen"], fields["rejected"]
    if isinstance(prompt, str):
        if isinstance(chosen, list) and isinstance(rejected, list):
            raise ValueError("'prompt' is text, and both sides are messages; set 'format: ultrafeedback'")
        _refuse_system(row, [])
        return
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise ValueError("'prompt' must be text if a side is text; set 'format: chat'")
    _refuse_system(row, prompt)


def _refuse_system(row: Mapping[str, Any], prompt: Any) -> None:
    if (system := system_of(row)) and not (isinstance(prompt, list) and holds_system(prompt, system)):
        name = next(name for name in SYSTEM if row.get(name))
        raise ValueError(f"the column {name!r} beside the 'prompt' would be lost; set 'format: chat'")


def _guess(chosen: Any, rejected: Any) -> Fields:
    if chosen == rejected:
        raise DroppedRow("identical_sides")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if has_turns(chosen):
            raise ValueError("there is no 'prompt', and the text is a dialogue; set 'format: hh-rlhf'")
        shared = shared_text(chosen, rejected)
    elif isinstance(chosen, list) and isinstance(rejected, list):
        shared = shared_messages(chosen, rejected)
    else:
        raise ValueError(
            "'chosen' and 'rejected' must both be text or both messages, not "
            f"{describe_value(chosen)} and {describe_value(rejected)}"
        )
    if shared <= 0:
        raise ValueError("there is no 'prompt', and the two sides do not begin alike")
    return {
        "prompt": chosen[:shared],
        "chosen": chosen[shared:],
        "rejected": rejected[shared:],
        "derived": True,
    }
