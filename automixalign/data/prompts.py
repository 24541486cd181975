"""Read prompts without answers: rows of a file, each with a `prompt`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from automixalign.data.pairs import Options, Turn, make_prompt
from automixalign.data.read_task import MAX_NAMED_ROWS
from automixalign.data.reading.data_files import KINDS, read_file
from automixalign.data.reading.row import Row, Unreadable
from automixalign.data.reading.streams import decode, naming, open_text, read_lines
from automixalign.data.row_formats.row_format import DroppedRow
from automixalign.data.row_formats.shared.values import as_turn, need
from automixalign.system.errors import DataError

PROMPT, OUTPUT = "prompt", "output"
_TEXT = ".txt"
PROMPT_KINDS = f"{KINDS}; or {_TEXT} with one prompt a line"
"""The kinds of files of prompts, for messages."""


class Prompt(NamedTuple):
    """A row of a file of prompts."""

    row: dict[str, Any]
    prompt: Turn
    options: Options | None
    """What the chat template gets beside the messages."""


def read_prompts(path: Path, as_messages: bool) -> list[Prompt]:
    """Read all prompts of a file.

    Args:
        path: a data file whose rows have a `prompt`, text or messages, or a text file with one prompt a line.
            Blank lines of a text file are none.
        as_messages: whether a prompt of text becomes the message of a user.

    Raises:
        DataError: it cannot be read, or holds no prompt; or rows cannot be used, and the first ten are named
            with file and line.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a file")
    prompts, refused = [], []
    for row in _lines(path) if path.suffix.lower() == _TEXT else read_file(path, str(path)):
        try:
            prompts.append(_prompt(row, as_messages))
        except (ValueError, DroppedRow) as error:
            reason = "its prompt is empty" if isinstance(error, DroppedRow) else error
            refused.append(f"{row.where}: {reason}")
    if refused:
        named = "".join(f"\n  {reason}" for reason in refused[:MAX_NAMED_ROWS])
        count = "a row" if len(refused) == 1 else f"{len(refused)} rows"
        raise DataError(f"{path}: {count} cannot be used{named}")
    if not prompts:
        raise DataError(f"{path} holds no prompt")
    return prompts


def _prompt(row: Row, as_messages: bool) -> Prompt:
    data = row.data
    if isinstance(data, Unreadable):
        raise ValueError(data.problem)
    if OUTPUT in data:
        raise ValueError(f"the row has a field {OUTPUT!r} already, which would be lost; give it another name")
    prompt = as_turn(need(data, PROMPT))
    if as_messages and isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    prompt, options = make_prompt({**data, PROMPT: prompt})
    return Prompt(data, prompt, options)


def _lines(path: Path) -> Iterator[Row]:
    with naming(str(path), "text file"), open_text(path) as stream:
        for number, line in enumerate(read_lines(stream), start=1):
            if not line.isspace():
                try:
                    yield Row(f"{path}:{number}", {PROMPT: decode(line).rstrip("\r\n")})
                except ValueError as error:  # not UTF-8
                    yield Row(f"{path}:{number}", Unreadable(str(error)))
