"""Preference rows for the tests of data."""

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from automixalign.data.pairs import Pair, make_pair
from automixalign.data.row_formats.trl import Trl

Data = dict[str, Any]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def conversation(prompt: str, chosen: str, rejected: str, **more: Any) -> Data:
    sides = {"chosen": [assistant(chosen)], "rejected": [assistant(rejected)]}
    return {"prompt": [user(prompt)], **sides, **more}


def plain(prompt: str, chosen: str, rejected: str, **more: Any) -> Data:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def parsed(data: Data) -> Pair:
    """The pair of a row in TRL's format."""
    return make_pair(Trl().read(data, draw=random.Random))


def write_rows(path: Path, rows: Iterable[Data]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
