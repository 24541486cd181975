"""Write the splits of a task as Parquet, and its part of the statistics card."""

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
from automixalign.data.clean import Ranks, starts_of_equals
from automixalign.data.ordered import OrderedRows
from automixalign.data.pairs import TURNS
from automixalign.data.split import OVER_CAP, Labels
from automixalign.data.store import SPLITS, TRAIN, split_path, split_writer, task_digest


def write_splits(
    task: TaskSpec,
    seed: int,
    rows: OrderedRows,
    ranks: Ranks,
    labels: Labels,
    counts: Counter[str],
    folder: Path,
) -> dict[str, Any]:
    """Write the splits of a task.

    Args:
        rows: its usable pairs.
        ranks: of these pairs, rising; `labels` in the same order.
        counts: of rows that were read, and dropped or cut, by reason.

    Returns:
        Its card.
    """
    swapped = _noisy(labels, task, seed)
    total, longest = Counter[str](), Counter[str]()
    with ExitStack() as stack:
        writers = [
            stack.enter_context(split_writer(split_path(folder, task.name, split), rows.schema))
            for split in SPLITS
        ]
        at = 0
        for part in rows:
            here = slice(at, at := at + len(part))
            kept = pa.array(labels[here] != OVER_CAP)
            for turn in TURNS:
                lengths = pc.list_value_length(part.column(f"{turn}_ids")).filter(kept)
                total[turn] += pc.sum(lengths).as_py() or 0
                longest[turn] = max(longest[turn], pc.max(lengths).as_py() or 0)
            final = _swap(part, swapped[here])
            for number, writer in enumerate(writers):
                writer.add(final.filter(pa.array(labels[here] == number)))
    by_split = {split: ranks[labels == number] for number, split in enumerate(SPLITS)}
    count = sum(map(len, by_split.values()))
    return {
        "name": task.name,
        "source": task.source,
        "rows": {**counts, "over_cap": int((labels == OVER_CAP).sum())},
        "pairs": {split: len(found) for split, found in by_split.items()},
        "prompts": {split: len(starts_of_equals(found)) for split, found in by_split.items()},
        "tokens": {turn: {"mean": round(total[turn] / count, 1), "max": longest[turn]} for turn in TURNS},
        "swapped": int(swapped.sum()),
        "digest": task_digest(folder, task.name),
    }


def _noisy(labels: Labels, task: TaskSpec, seed: int) -> npt.NDArray[np.bool_]:
    """The training pairs whose sides are swapped, as `label_noise` asks."""
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
