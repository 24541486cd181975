"""Cached scores of a task's pairs, keyed by pair id: a folder with a table a split, and what it belongs to.

The reference log-probabilities of a task are one such cache, the losses of its specialist another.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from automixalign import files
from automixalign.data.store import task_digest
from automixalign.errors import CacheError

Floats = npt.NDArray[np.float64]

CHOSEN, REJECTED, LOSS = "chosen_logps", "rejected_logps", "loss"
MANIFEST = "manifest.json"


def write_cache(
    folder: Path, task: str, tables: Mapping[str, pa.Table], data: Path, **facts: Any
) -> dict[str, Any]:
    """Write `SPLIT.parquet` for each split and a manifest of the task and data they belong to.

    Returns:
        The manifest.
    """
    for split, table in tables.items():
        files.write_table(folder / f"{split}.parquet", table)
    manifest = {
        "task": task,
        "data": task_digest(data, task),
        "pairs": {split: len(table) for split, table in tables.items()},
        **facts,
    }
    files.write_json(folder / MANIFEST, manifest)
    return manifest


def read_cache(cache: Path, split: str) -> pa.Table:
    """One split of a task's cache: `pair_id`, `chosen_logps`, `rejected_logps`, a specialist's also `loss`."""
    return files.read_table(cache / f"{split}.parquet")


def cache_task(cache: Path) -> str:
    """The task a cache belongs to."""
    return str(files.read_json(cache / MANIFEST)["task"])


def check_cache(cache: Path, data: Path, task: str) -> None:
    """Refuse a cache that was computed for other data than `data` holds.

    Raises:
        CacheError: naming cache and task.
    """
    if not (cache / MANIFEST).exists():
        raise CacheError(f"{cache}: there is no cache of task {task} here")
    if files.read_json(cache / MANIFEST)["data"] != task_digest(data, task):
        raise CacheError(f"{cache}: was not computed for this data of task {task}; compute it again")


def read_scores(evaluation: Path, task: str) -> pa.Table:
    """An evaluation's scores of one task: `pair_id`, `chosen_logps`, `rejected_logps`, `margin`, `loss`."""
    return files.read_table(evaluation / f"{task}.parquet")


def column(table: pa.Table, name: str) -> Floats:
    """A numeric column as float64."""
    return np.asarray(table.column(name).to_numpy(), dtype=np.float64)


def join(cache: pa.Table, pair_ids: Sequence[str], what: str) -> pa.Table:
    """The cache's rows in the order of `pair_ids`.

    Raises:
        CacheError: an id is missing or stands twice: a default would silently train on a wrong loss.
    """
    known = cache.column("pair_id").to_pylist()
    place = {pair_id: row for row, pair_id in enumerate(known)}
    if len(place) != len(known):
        raise CacheError(f"{what}: the cache holds a pair id twice")
    missing = [pair_id for pair_id in pair_ids if pair_id not in place]
    if missing:
        raise CacheError(
            f"{what}: {len(missing)} of {len(pair_ids)} pairs are missing in the cache, first {missing[0]}"
        )
    return cache.take(pa.array([place[pair_id] for pair_id in pair_ids], type=pa.int64()))
