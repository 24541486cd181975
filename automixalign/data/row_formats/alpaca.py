"""Instructions with an optional input, as LLaMA-Factory reads them.

https://github.com/hiyouga/LLaMA-Factory/tree/main/data
"""

from collections.abc import Mapping
from typing import Any

from automixalign.data.row_formats.registry import register
from automixalign.data.row_formats.row_format import (
    EXTRAS,
    Draw,
    Fields,
    Messages,
    RowFormat,
    extras,
    messages,
    reply,
)
from automixalign.data.row_formats.shared.beside import MEDIA, SYSTEM, refuse_media, system_of, with_system
from automixalign.data.row_formats.shared.values import as_list, as_text, need, need_text


@register("alpaca")
class Alpaca(RowFormat):
    """`instruction`, `input`, `system` and `history`; the sides are `chosen` and `rejected`, or `output`.

    The input follows the instruction on a new line. Of the answers in `output`, the first two count.
    """

    columns = ("instruction", "input", *SYSTEM, "history", "chosen", "rejected", "output", *EXTRAS, *MEDIA)
    optional = tuple(name for name in columns if name != "instruction")
    marks = MEDIA

    def read(self, row: Mapping[str, Any], draw: Draw) -> Fields:
        """The instruction after the history, and its two answers."""
        refuse_media(row)
        texts = [need_text(row, "instruction"), as_text(row.get("input") or "", "input")]
        asked = messages("\n".join(text for text in texts if text.strip()))
        chosen, rejected = _sides(row)
        prompt = with_system([*_history(row.get("history") or []), *asked], system_of(row))
        return {"prompt": prompt, "chosen": reply(chosen), "rejected": reply(rejected), **extras(row)}


def _sides(row: Mapping[str, Any]) -> tuple[str, str]:
    output = row.get("output")
    if row.get("chosen") is None and (isinstance(output, list) or str(output).startswith("[")):
        answers = [as_text(answer, "output") for answer in as_list(output, "output")]
        if len(answers) < 2:
            raise ValueError("'output' must hold the better and the worse answer, not one answer")
        return answers[0], answers[1]
    return as_text(need(row, "chosen"), "chosen"), as_text(need(row, "rejected"), "rejected")


def _history(history: Any) -> Messages:
    turns: Messages = []
    for turn in as_list(history, "history"):
        if not isinstance(turn, list) or len(turn) != 2:
            raise ValueError("'history' must hold lists of a question and an answer")
        question, answer = (as_text(text, "history") for text in turn)
        turns += [*messages(question), *reply(answer)]
    return turns
