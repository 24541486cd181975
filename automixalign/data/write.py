"""Write the splits of a task as Parquet, and describe them for the statistics card."""

import random
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from automixalign.config.data import TaskSpec
from automixalign.data.clean import Ranks, group_starts
from automixalign.data.external_sort import ExternalSort
from automixalign.data.pairs import TURNS
from automixalign.data.split import OVER_CAP, Labels
from automixalign.data.store import SPLITS, TRAIN, split_path, split_writer, task_digest


def write_splits(
    task: TaskSpec,
    seed: int,
    rows: ExternalSort,
    ranks: Ranks,
    labels: Labels,
    counts: Counter[str],
    folder: Path,
) -> dict[str, Any]:
    """Write the splits of a task.

    Args:
        seed: draws the pairs that `label_noise` swaps.
        rows: the usable pairs.
        ranks: the ranks of these pairs, in rising order.
        labels: the splits of these pairs, in the same order.
        counts: the number of rows that were read, dropped and cut, by reason.
        folder: the data folder.

    Returns:
        The task's entry of the card.
    """
    swapped = _draw_noise(labels, task, seed)
    total, longest = Counter[str](), Counter[str]()
    with ExitStack() as stack:
        writers = [
            stack.enter_context(split_writer(split_path(folder, task.name, split), rows.schema))
            for split in SPLITS
        ]
        start = 0
        for part in rows:
            part_labels = labels[start : start + len(part)]
            below_cap = pa.array(part_labels != OVER_CAP)
            for turn in TURNS:
                lengths = pc.list_value_length(part.column(f"{turn}_ids")).filter(below_cap)
                total[turn] += pc.sum(lengths).as_py() or 0
                longest[turn] = max(longest[turn], pc.max(lengths).as_py() or 0)
            final = _swap(part, swapped[start : start + len(part)])
            for number, writer in enumerate(writers):
                writer.add(final.filter(pa.array(part_labels == number)))
            start += len(part)
    ranks_of = {split: ranks[labels == number] for number, split in enumerate(SPLITS)}
    count = sum(map(len, ranks_of.values()))
    return {
        "name": task.name,
        "source": task.source,
        "rows": {**counts, "over_cap": int((labels == OVER_CAP).sum())},
        "pairs": {split: len(some) for split, some in ranks_of.items()},
        "prompts": {split: len(group_starts(some)) for split, some in ranks_of.items()},
        "tokens": {turn: {"mean": round(total[turn] / count, 1), "max": longest[turn]} for turn in TURNS},
        "swapped": int(swapped.sum()),
        "digest": task_digest(folder, task.name),
    }


def _draw_noise(labels: Labels, task: TaskSpec, seed: int) -> npt.NDArray[np.bool_]:
    """Draw the training pairs whose sides `label_noise` swaps."""
    train = np.flatnonzero(labels == SPLITS.index(TRAIN))
    drawn = random.Random(f"noise:{seed}:{task.name}").sample(
        range(len(train)), round(task.label_noise * len(train))
    )
    noisy = np.zeros(len(labels), dtype=np.bool_)
    noisy[train[np.array(drawn, dtype=np.int64)]] = True
    return noisy


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
