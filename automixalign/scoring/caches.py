"""Cached scores of a task's pairs, keyed by pair id: a folder with a table a split, and what it belongs to.

The reference log-probabilities of a task are one such cache, the losses of its specialist another.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from automixalign.data.store import task_digest
from automixalign.storage import files
from automixalign.system.errors import CacheError

Floats = npt.NDArray[np.float64]

CHOSEN, REJECTED, LOSS = "chosen_logps", "rejected_logps", "loss"
MANIFEST = "manifest.json"
SUMMARY = "summary.json"
"""In an evaluation: the metrics of each task."""


def write_cache(
    folder: Path, task: str, tables: Mapping[str, pa.Table], data: Path, **facts: Any
) -> dict[str, Any]:
    """Write `SPLIT.parquet` for each split and a manifest of the task and data they belong to.

    Returns:
        The manifest.

    Raises:
        CacheError: a value is not finite.
    """
    for split, table in tables.items():
        write_scores(folder / f"{split}.parquet", table)
    manifest = {
        "task": task,
        "data": task_digest(data, task),
        "pairs": {split: len(table) for split, table in tables.items()},
        **facts,
    }
    files.write_json(folder / MANIFEST, manifest)
    return manifest


def read_cache(cache: Path, split: str, *columns: str) -> pa.Table:
    """One split of a task's cache: `pair_id`, `chosen_logps`, `rejected_logps`, a specialist's also `loss`.

    Args:
        columns: those that must be there.

    Raises:
        CacheError: it cannot be read, lacks a column, its ids are not strings, or a value is not finite.
    """
    return _read(cache / f"{split}.parquet", *columns)


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


def read_scores(evaluation: Path, task: str, *columns: str) -> pa.Table:
    """An evaluation's scores of one task: `pair_id`, `chosen_logps`, `rejected_logps`, `margin`, `loss`.

    Args:
        columns: those that must be there.

    Raises:
        CacheError: they cannot be read, lack a column, or a value is not finite.
    """
    return _read(evaluation / f"{task}.parquet", *columns)


def write_scores(path: Path, table: pa.Table) -> None:
    """Write a table of scores.

    Raises:
        CacheError: a value is not finite.
    """
    _check_finite(path, table)
    files.write_table(path, table)


def _read(path: Path, *columns: str) -> pa.Table:
    try:
        table = files.read_table(path)
        lacking = {"pair_id", *columns} - set(table.column_names)
    except (OSError, ValueError, pa.ArrowException) as error:  # OSError: also a sum that does not match
        raise CacheError(f"{path}: cannot be read, compute it again: {error}") from error
    if lacking:
        raise CacheError(f"{path}: has no column {', '.join(sorted(lacking))}; compute it again")
    kind = table.schema.field("pair_id").type  # no page's sum covers the types of columns
    if kind != pa.string():
        raise CacheError(f"{path}: pair_id is {kind}, not string; compute it again")
    _check_finite(path, table)
    return table


def _check_finite(path: Path, table: pa.Table) -> None:
    """A value that is not finite would pass through every mean and comparison after it."""
    for name, kind in zip(table.column_names, table.schema.types, strict=True):
        if pa.types.is_floating(kind):
            bad = np.flatnonzero(~np.isfinite(column(table, name)))
            if len(bad):
                pair = table.column("pair_id")[int(bad[0])]
                raise CacheError(
                    f"{path}: the {name} of {len(bad)} of {len(table)} pairs is not finite, first of {pair}; "
                    "compute it again, with a model that did not diverge"
                )


def column(table: pa.Table, name: str) -> Floats:
    """A numeric column as float64."""
    return np.asarray(table.column(name).to_numpy(), dtype=np.float64)


def join(cache: pa.Table, pair_ids: Sequence[str], what: str) -> pa.Table:
    """The cache's rows in the order of `pair_ids`.

    Raises:
        CacheError: an id is missing or stands twice: a default would silently train on a wrong loss.
    """
    known, wanted = cache.column("pair_id"), pa.chunked_array([pa.array(pair_ids, type=pa.string())])
    if pc.count_distinct(known).as_py() != len(known):
        raise CacheError(f"{what}: the cache holds a pair id twice")
    places = pc.index_in(wanted, value_set=known)
    if places.null_count:
        missing = wanted.filter(places.is_null())
        raise CacheError(
            f"{what}: {len(missing)} of {len(wanted)} pairs are missing in the cache, first {missing[0]}"
        )
    return cache.take(places)
