"""Write the splits of a task as Parquet."""

import random
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from automixalign.config.data import TaskSpec
from automixalign.data.clean import Candidates
from automixalign.data.pairs import TURNS
from automixalign.data.split import NO_SPLIT, Labels
from automixalign.data.store import SPLITS, TEST, TRAIN, SplitWriter, split_path, split_writer, task_digest
from automixalign.data.task_pairs import TaskPairs


def write_splits(pairs: TaskPairs, seed: int, labels: Labels, folder: Path) -> dict[str, Any]:
    """Write the splits of a task.

    Args:
        pairs: the task's pairs with their tokens.
        seed: draws the pairs that `label_noise` swaps.
        labels: the split of each candidate.
        folder: the data folder.

    Returns:
        Entries of the card: `tokens` (mean and largest length of each turn), `swapped`, `digest`.
    """
    task, candidates = pairs.task, pairs.candidates
    swapped = _draw_noise(candidates, labels, task, seed)
    total, longest = Counter[str](), Counter[str]()

    def wait_for(writing: list[Future[None]]) -> None:
        for future in writing:
            future.result()

    def add(writer: SplitWriter, rows: pa.Table) -> None:
        for turn in TURNS:
            lengths = pc.list_value_length(rows.column(f"{turn}_ids"))
            total[turn] += pc.sum(lengths).as_py() or 0
            longest[turn] = max(longest[turn], pc.max(lengths).as_py() or 0)
        writer.add(rows)

    with ExitStack() as stack:
        writers = [
            stack.enter_context(split_writer(split_path(folder, task.name, split), pairs.rows.schema))
            for split in SPLITS
        ]
        # One thread writes a part, while this one reads and sorts the next.
        thread = stack.enter_context(ThreadPoolExecutor(1))
        writing: list[Future[None]] = []
        for rows, numbers in pairs.rows.parts():
            tables = []
            for split in range(len(SPLITS)):
                of_split = np.flatnonzero(labels[numbers] == split)
                order = of_split[np.argsort(candidates.ranks[numbers[of_split]], kind="stable")]
                table = _swap(rows.take(order), swapped[numbers[order]])
                tables.append(table if SPLITS[split] == TEST else _without(table, "row"))
            wait_for(writing)
            writing = list(map(thread.submit, repeat(add), writers, tables))
        wait_for(writing)
    count = int((labels != NO_SPLIT).sum())
    return {
        "tokens": {turn: {"mean": round(total[turn] / count, 1), "max": longest[turn]} for turn in TURNS},
        "swapped": int(swapped.sum()),
        "digest": task_digest(folder, task.name),
    }


def _draw_noise(candidates: Candidates, labels: Labels, task: TaskSpec, seed: int) -> npt.NDArray[np.bool_]:
    """Draw the training pairs whose sides `label_noise` swaps."""
    ordered = candidates.used
    train = ordered[labels[ordered] == SPLITS.index(TRAIN)]
    drawn = random.Random(f"noise:{seed}:{task.name}").sample(
        range(len(train)), round(task.label_noise * len(train))
    )
    noisy = np.zeros(len(labels), dtype=np.bool_)
    noisy[train[np.array(drawn, dtype=np.int64)]] = True
    return noisy


def _without(rows: pa.Table, name: str) -> pa.Table:
    """The rows with nulls in a column."""
    index = rows.schema.get_field_index(name)
    return rows.set_column(index, rows.schema.field(index), pa.nulls(len(rows), rows.schema.field(index).type))


def _swap(rows: pa.Table, noisy: npt.NDArray[np.bool_]) -> pa.Table:
    if not noisy.any():
        return rows
    swapped = pa.array(noisy)
    columns = {name: rows.column(name) for name in rows.column_names} | {"swapped": swapped}
    for suffix in ("", "_ids"):
        chosen, rejected = rows.column(f"chosen{suffix}"), rows.column(f"rejected{suffix}")
        columns[f"chosen{suffix}"] = pc.if_else(swapped, rejected, chosen)
        columns[f"rejected{suffix}"] = pc.if_else(swapped, chosen, rejected)
    return pa.table(columns, schema=rows.schema)
