"""Where prepared splits lie and how to read them: `FOLDER/TASK/{train,validation,test}.parquet`."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from automixalign import files


def split_path(folder: Path, task: str, split: str) -> Path:
    """The Parquet file of one split of one task, in a data folder or in a cache laid out like it."""
    return folder / task / f"{split}.parquet"


def tasks_of(data: Path) -> list[str]:
    """The tasks of a data folder, in the order of the configuration."""
    return [task["name"] for task in read_card(data)["tasks"]]


def read_card(data: Path) -> dict[str, Any]:
    """The statistics card of a data folder."""
    card: dict[str, Any] = files.read_json(data / "card.json")
    return card


def read_split(data: Path, task: str, split: str) -> pa.Table:
    """The pairs of one split: `pair_id`, `task`, text and `*_ids` of the three turns, `answer`, `swapped`."""
    return files.read_table(split_path(data, task, split))


def task_digest(data: Path, task: str) -> str:
    """SHA-256 over the files of a task's splits: what a cache of its losses belongs to."""
    return files.digest(data / task)
