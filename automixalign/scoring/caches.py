"""Caches of a task's scores, keyed by pair id: a folder with one table a split and a manifest.

The reference log-probabilities of a task are one cache; the losses of its specialist are another.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from automixalign.data.store import IDS, read_split, task_digest
from automixalign.storage import files
from automixalign.system.errors import CacheError

Floats = npt.NDArray[np.float64]

CHOSEN, REJECTED, LOSS = "chosen_logps", "rejected_logps", "loss"
MARGIN, LOG_RATIO, PROMPT = "margin", "chosen_log_ratio", "prompt"
"""Further columns of an evaluation; pairs of one prompt have the same number."""
MANIFEST = "manifest.json"
SUMMARY = "summary.json"
"""The file of an evaluation with the metrics of each task."""
GENERATIONS = "generations.jsonl"
"""The file of an evaluation with the generated answers, one for each prompt of a task with a verifier."""


def write_cache(
    folder: Path, task: str, tables: Mapping[str, pa.Table], data: Path, **facts: Any
) -> dict[str, Any]:
    """Write `SPLIT.parquet` for each split, and a manifest that names their task and data.

    Args:
        folder: the cache.
        task: the task.
        tables: split -> scores of its pairs.
        data: the prepared data that the pairs come from.
        facts: further entries of the manifest.

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
    """Read one split of a cache: `pair_id`, `chosen_logps`, `rejected_logps`; of a specialist's also `loss`.

    Args:
        columns: required besides `pair_id`.

    Raises:
        CacheError: it cannot be read, lacks a column, has ids that are not strings, or a value that is not
            finite.
    """
    return _read(cache / f"{split}.parquet", *columns)


def cache_task(cache: Path) -> str:
    """The task of a cache."""
    return str(files.read_json(cache / MANIFEST)["task"])


def cache_precision(cache: Path) -> str:
    """The precision of the forward passes whose scores a cache holds: `fp32` or `bf16`."""
    return str(files.read_json(cache / MANIFEST)["precision"])


def check_precision(reference_logps: Path, tasks: Iterable[str], precision: str) -> None:
    """Check that scores in a precision can be compared with the reference log-probabilities.

    Args:
        reference_logps: their caches, `TASK/`.
        tasks: the tasks to score.
        precision: of the new scores on this machine, `fp32` or `bf16`.

    Raises:
        CacheError: another machine computed a cache in another precision.
    """
    for task in tasks:
        if (other := cache_precision(reference_logps / task)) != precision:
            raise CacheError(
                f"{reference_logps / task}: the reference log-probabilities are in {other}, and this machine "
                f"would score its model in {precision}; set evaluation.precision to fp32 or bf16, which all "
                "machines then use, or give all stages that score the same accelerators"
            )


def check_cache(cache: Path, data: Path, task: str) -> None:
    """Check that a cache was computed for this data.

    Raises:
        CacheError: there is no cache, or it was computed for other data.
    """
    if not (cache / MANIFEST).exists():
        raise CacheError(f"{cache}: there is no cache of task {task} here")
    if files.read_json(cache / MANIFEST)["data"] != task_digest(data, task):
        raise CacheError(f"{cache}: was not computed for this data of task {task}; compute it again")


def read_pairs(
    data: Path, reference_logps: Path, task: str, split: str, losses: Path | None = None
) -> pa.Table:
    """The pairs of a task's split with what their losses need besides a policy.

    Args:
        data: the prepared splits.
        reference_logps: the caches of the reference log-probabilities, `TASK/`.
        task: the task.
        split: the split.
        losses: the cache of the task's specialist.

    Returns:
        The token ids, `ref_chosen_logps`, `ref_rejected_logps` and, with `losses`, `specialist_loss`.

    Raises:
        CacheError: a cache is missing, incomplete, or belongs to other data.
    """
    pairs = read_split(data, task, split, IDS)

    def add(cache: Path, title: str, **columns: str) -> None:
        nonlocal pairs
        check_cache(cache, data, task)
        found = join(
            read_cache(cache, split, *columns), pairs.column("pair_id").to_pylist(), f"{title} of {task}"
        )
        for name, new in columns.items():
            pairs = pairs.append_column(new, found.column(name))

    add(reference_logps / task, "reference log-probs", **{side: f"ref_{side}" for side in (CHOSEN, REJECTED)})
    if losses is not None:
        add(losses, "specialist losses", **{LOSS: "specialist_loss"})
    return pairs


def read_scores(evaluation: Path, task: str, *columns: str) -> pa.Table:
    """Read an evaluation's scores of a task.

    Its columns are `pair_id`, `prompt`, `chosen_logps`, `rejected_logps`, `chosen_log_ratio`, `margin` and
    `loss`.

    Args:
        columns: required besides `pair_id`.

    Raises:
        CacheError: as for `read_cache`.
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
        missing = {"pair_id", *columns} - set(table.column_names)  # damaged names are no UTF-8
    except (OSError, ValueError, pa.ArrowException) as error:  # OSError: also a checksum that does not match
        raise CacheError(f"{path}: cannot be read, compute it again: {error}") from error
    if missing:
        raise CacheError(f"{path}: has no column {', '.join(sorted(missing))}; compute it again")
    kind = table.schema.field("pair_id").type  # Parquet's checksums do not cover the types of columns
    if kind != pa.string():
        raise CacheError(f"{path}: pair_id is {kind}, not string; compute it again")
    _check_finite(path, table)
    return table


def _check_finite(path: Path, table: pa.Table) -> None:
    """Refuse NaN and infinity, which would silently spoil every mean and comparison."""
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


def join(cache: pa.Table, pair_ids: Sequence[str], title: str) -> pa.Table:
    """The rows of a cache in the order of `pair_ids`.

    Args:
        cache: a table with the column `pair_id`.
        pair_ids: the ids to look up.
        title: names the cache in messages.

    Raises:
        CacheError: the cache lacks an id or has one twice. A default would silently train on a wrong loss.
    """
    cached = cache.column("pair_id")
    requested = pa.chunked_array([pa.array(pair_ids, type=pa.string())])
    if pc.count_distinct(cached).as_py() != len(cached):
        raise CacheError(f"{title}: the cache holds a pair id twice")
    indices = pc.index_in(requested, value_set=cached)
    if indices.null_count:
        missing = requested.filter(indices.is_null())
        raise CacheError(
            f"{title}: {len(missing)} of {len(requested)} pairs are missing in the cache, first {missing[0]}"
        )
    return cache.take(indices)
