"""Recognise common layouts by their columns, to advise on the format that reads them."""

from collections.abc import Collection

CONTEXT = (
    *("question", "instruction", "input", "context", "conversations", "history"),
    *("system", "system_prompt", "system_message"),
)
"""Columns that hold a part of the prompt in other layouts; beside them, no prompt is guessed."""
UNREAD = ("messages", "conversation", "dialogue", "trajectory", "query", "problem", "post")
"""Further names of such columns, beside sides of text. No format reads them unless `columns` maps them."""
_LAYOUTS = (
    (("response_0", "response_1"), "pku-saferlhf"),
    (("response1", "response2"), "helpsteer3"),
    (("response_1", "response_2"), "helpsteer3"),
    (("conversations",), "sharegpt"),
    (("question", "chosen"), "orca"),
    (("system", "input", "chosen"), "orca"),
    (("instruction", "chosen"), "alpaca"),
    (("instruction", "output"), "alpaca"),
    (("generations",), "ratings"),
    (("completions",), "ratings"),
    (("answers",), "ratings"),
    (("prompt", "chosen"), "chat"),
)
MARKS = tuple(dict.fromkeys(name for names, _ in _LAYOUTS for name in names))
"""The columns that tell layouts apart."""


def layout_format(columns: Collection[str]) -> str | None:
    """The format whose layout these columns are."""
    return next((name for names, name in _LAYOUTS if all(each in columns for each in names)), None)


def advice(columns: Collection[str]) -> str:
    """What to do about a row or file that `trl` cannot read, by the columns that it has."""
    name = layout_format(columns)
    named = f"'format: {name}'" if name else "the 'format' that reads it"
    return f"set {named}, or map 'columns'"
