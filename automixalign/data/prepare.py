"""The stage `prepare_data`: read, clean, limit, tokenise, split, describe.

Memory holds a few thousand pairs at a time, whatever the size of the data. The pairs of a task pass through two
files: as parsed, and as tokenised. Digests of fixed size identify the pairs in comparisons, orders and splits.
"""

import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa

from automixalign.config.data import DataSettings, TaskSpec
from automixalign.data.clean import CleanPairs, Ranks, clean
from automixalign.data.external_sort import ExternalSort
from automixalign.data.pair_file import PairFile
from automixalign.data.pairs import TURNS, Pair, parse_row, text_of
from automixalign.data.read import read_rows
from automixalign.data.split import split_tasks
from automixalign.data.store import split_schema
from automixalign.data.tokens import Tokens, check_template, tokenize
from automixalign.data.write import write_splits
from automixalign.steps.step import current_step
from automixalign.steps.tracking.record import Dataset
from automixalign.storage import files
from automixalign.system.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Verifier: TypeAlias = Callable[[str, str], bool]
"""Takes a generated and the right answer; returns whether the generated one passes."""
Verifiers: TypeAlias = Mapping[str, Verifier]


def prepare_data(
    settings: DataSettings, tokenizer: "PreTrainedTokenizerBase", verifiers: Verifiers, output: Path
) -> dict[str, Any]:
    """Write the splits of all tasks as Parquet, and a statistics card.

    Args:
        settings: the tasks, their splits and `max_length`.
        tokenizer: of the base model.
        verifiers: by name. Each must pass the right answers of the tasks that name it.
        output: folder to write.

    Returns:
        The card: for each task the rows that were read and dropped by reason, the sizes of the splits, and
        lengths in tokens.

    Raises:
        DataError: a malformed row (file and line), a task without usable pairs, or messages that the chat
            template refuses.
        ModelError: conversational data and a tokenizer without chat template.
    """
    with files.replacing(output) as folder, tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        tasks = {
            task.name: _usable_pairs(task, settings, tokenizer, verifiers, scratch=Path(scratch))
            for task in settings.tasks
        }
        labels = split_tasks({name: usable.ranks for name, usable in tasks.items()}, settings.split)
        cards = [
            write_splits(
                task, settings.seed, **tasks[task.name]._asdict(), labels=labels[task.name], folder=folder
            )
            for task in settings.tasks
        ]
        result = {"max_length": settings.max_length, "seed": settings.seed, "tasks": cards}
        files.write_json(folder / "card.json", result)
    _record(cards, output)
    return result


def _record(cards: list[dict[str, Any]], output: Path) -> None:
    """Record the data in MLflow."""
    record = current_step().record
    record.of_pipeline = True
    record.add_artifact(output / "card.json", "data/card.json")
    for card in cards:
        sizes = {f"pairs_{split}": count for split, count in card["pairs"].items()}
        record.datasets.append(
            Dataset(name=card["name"], digest=card["digest"], source=card["source"], profile=sizes)
        )


def read_pairs(
    task: TaskSpec, seed: int, verifiers: Verifiers, file: PairFile | None = None
) -> tuple[CleanPairs, Counter[str]]:
    """Read and clean the pairs of a task, and draw `task.limit` of them.

    Args:
        seed: the seed of the draw and of the split.
        verifiers: by name; the task's verifier is among them.
        file: takes all pairs, and gives the clean ones. Without it, the source is read twice.

    Returns:
        The pairs, and the number of rows that were read and dropped, by reason.

    Raises:
        DataError: a malformed row (file and line), no usable pair, text and messages in one task, or a pair
            without an answer that the task's verifier passes.
    """
    source = _Source(task, seed)
    pairs, counts = (
        clean(source, seed, source) if file is None else clean(file.write_through(source), seed, file)
    )
    if not len(pairs):
        dropped = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        raise DataError(f"task {task.name}: {task.source} holds no usable pair ({dropped})")
    if pairs.mixed:
        raise DataError(f"task {task.name}: mixes plain-text and conversational rows; use one form a task")
    if task.verifier:
        _check_answers(task.name, task.verifier, verifiers[task.verifier], pairs)
    if task.limit is not None and len(pairs) > task.limit:
        drawn = random.Random(f"limit:{seed}:{task.name}").sample(range(len(pairs)), task.limit)
        counts["over_limit"] = len(pairs) - task.limit
        pairs = pairs.take(np.sort(np.array(drawn)))
    return pairs, counts


@dataclass(frozen=True)
class _Source:
    """The pairs of all rows of a task. Iterating reads and parses the rows."""

    task: TaskSpec
    seed: int

    def __iter__(self) -> Iterator[Pair]:
        return map(parse_row, read_rows(self.task, self.seed))


def _check_answers(task: str, name: str, verifier: Verifier, pairs: CleanPairs) -> None:
    for pair in pairs:
        if pair.answer is None:
            problem = "needs an 'answer' in every row; there is none"
        elif not verifier(pair.answer, pair.answer):
            problem = f"can never pass the answer {pair.answer!r:.80}, which is given"
        else:
            continue
        raise DataError(
            f"task {task}: the verifier {name!r} {problem} for the prompt {text_of(pair.prompt)!r:.80}"
        )


def check_rendering(
    task: str, pairs: CleanPairs, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> None:
    """Check that a tokenizer renders the pairs of a task up to the first that fits `max_length` tokens.

    Raises:
        DataError: no pair fits, or the chat template refuses one before it.
        ModelError: the pairs are conversational and the tokenizer has no chat template.
    """
    with _naming(task):
        check_template(tokenizer, pairs.conversational)
        chunks = tokenize(tokenizer, pairs, max_length)
        if not any(_is_usable(tokens, Counter()) for chunk in chunks for _, tokens in chunk):
            raise _nothing_fits(len(pairs), max_length)


@contextmanager
def _naming(task: str) -> Iterator[None]:
    """Name the task in errors of its data."""
    try:
        yield
    except (DataError, ModelError) as error:
        raise type(error)(f"task {task}: {error}") from error


def _nothing_fits(count: int, max_length: int) -> DataError:
    return DataError(f"none of its {count} pairs fits max_length={max_length} tokens; raise 'max_length'")


class _UsablePairs(NamedTuple):
    """The tokenised pairs of a task in the order of their ranks, and the numbers of rows by reason."""

    rows: ExternalSort
    ranks: Ranks
    counts: Counter[str]


def _usable_pairs(
    task: TaskSpec,
    settings: DataSettings,
    tokenizer: "PreTrainedTokenizerBase",
    verifiers: Verifiers,
    scratch: Path,
) -> _UsablePairs:
    file = PairFile(scratch / f"{task.name}.jsonl")
    pairs, counts = read_pairs(task, settings.seed, verifiers, file)
    positions = np.empty(len(pairs), dtype=np.int32)
    positions[np.argsort(pairs.ranks, kind="stable")] = np.arange(len(pairs), dtype=np.int32)
    row_bytes = 3 * file.path.stat().st_size / counts["read"]  # as text and as ids
    rows = ExternalSort(scratch / task.name, split_schema(pairs.conversational), row_bytes)
    fits = np.zeros(len(pairs), dtype=np.bool_)
    start = 0
    with _naming(task.name):
        check_template(tokenizer, pairs.conversational)
        for chunk in tokenize(tokenizer, pairs, settings.max_length):
            part = slice(start, start := start + len(chunk))
            fits[part] = [_is_usable(tokens, counts) for _, tokens in chunk]
            if usable := list(compress(chunk, fits[part])):
                rows.add(_batch(task.name, usable, rows.schema), positions[part][fits[part]])
        if not fits.any():
            raise _nothing_fits(len(pairs), settings.max_length)
    file.path.unlink()
    return _UsablePairs(rows, np.sort(pairs.ranks[fits]), counts)


def _is_usable(tokens: Tokens | None, counts: Counter[str]) -> bool:
    """Whether a pair can be used; counts the reason if it is dropped or cut."""
    if tokens is None:
        counts["prompt_too_long"] += 1
    elif tokens.chosen == tokens.rejected:
        counts["identical_when_cut"] += 1
    else:
        counts["cut"] += tokens.truncated
        return True
    return False


def _batch(task: str, usable: list[tuple[Pair, Tokens | None]], schema: pa.Schema) -> pa.RecordBatch:
    pairs, tokens = zip(*usable, strict=True)
    columns: dict[str, list[Any]] = {
        "pair_id": [pair.pair_id for pair in pairs],
        "task": [task] * len(pairs),
        "answer": [pair.answer for pair in pairs],
        "swapped": [False] * len(pairs),
    }
    for turn in TURNS:
        columns[turn] = [getattr(pair, turn) for pair in pairs]
        columns[f"{turn}_ids"] = [getattr(ids, turn) for ids in tokens]
    return pa.RecordBatch.from_pydict(columns, schema=schema)
