"""Prepare the data of an experiment: read, clean, limit, tokenise, split, card.

However many pairs there are, a few thousand lie in memory at a time: each task's pairs go through two files on
the way, once cleaned and once tokenised, and keys of fixed size are what is compared, ordered and split.
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
from automixalign.data.ordered import OrderedRows
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

Verifiers: TypeAlias = Mapping[str, Callable[[str, str], bool]]
"""Name -> verifier, which says whether an output passes for an answer."""


def prepare_data(
    settings: DataSettings, tokenizer: "PreTrainedTokenizerBase", verifiers: Verifiers, output: Path
) -> dict[str, Any]:
    """Write every task's splits as Parquet, and a statistics card.

    Args:
        tokenizer: of the base model.
        verifiers: those that tasks may name; each must pass the answers of its task's own rows.
        output: folder to write.

    Returns:
        The card: per task what was read, dropped and why, the sizes of its splits and lengths in tokens.

    Raises:
        DataError: a malformed row (file and line), a task that is left without pairs, or messages that the
            chat template refuses.
        ModelError: conversational data and a tokenizer without chat template.
    """
    with files.replacing(output) as folder, tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        tasks = {
            task.name: _usable_pairs(task, settings, tokenizer, verifiers, Path(scratch))
            for task in settings.tasks
        }
        labels = split_tasks({name: found.ranks for name, found in tasks.items()}, settings.split)
        cards = []
        for task in settings.tasks:
            rows, ranks, counts = tasks[task.name]
            cards.append(write_splits(task, settings.seed, rows, ranks, labels[task.name], counts, folder))
        result = {"max_length": settings.max_length, "seed": settings.seed, "tasks": cards}
        files.write_json(folder / "card.json", result)
    _record(cards, output)
    return result


def _record(cards: list[dict[str, Any]], output: Path) -> None:
    """Tell MLflow what the data was."""
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
    """The clean pairs of a task's source, `task.limit` at most, and how many rows were read and dropped.

    Args:
        verifiers: the task's is among them.
        file: where all pairs are kept, to be read again from there; without it, the source is read again.

    Raises:
        DataError: a malformed row (file and line), no pair at all, text and messages in one task, or a pair
            without an answer that the task's verifier can use.
    """
    source = _Source(task, seed)
    pairs, counts = clean(source, seed, source) if file is None else clean(file.keep(source), seed, file)
    if not len(pairs):
        dropped = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        raise DataError(f"task {task.name}: {task.source} holds no usable pair ({dropped})")
    if pairs.mixed:
        raise DataError(f"task {task.name}: mixes plain-text and conversational rows; use one form a task")
    if task.verifier:
        _check_answers(task.name, task.verifier, verifiers[task.verifier], pairs)
    if task.limit is not None and len(pairs) > task.limit:
        chosen = random.Random(f"limit:{seed}:{task.name}").sample(range(len(pairs)), task.limit)
        counts["over_limit"] = len(pairs) - task.limit
        pairs = pairs.take(np.sort(np.array(chosen)))
    return pairs, counts


@dataclass(frozen=True)
class _Source:
    """The pairs of all rows of a task; to iterate reads them."""

    task: TaskSpec
    seed: int

    def __iter__(self) -> Iterator[Pair]:
        return map(parse_row, read_rows(self.task, self.seed))


def _check_answers(task: str, name: str, verifier: Callable[[str, str], bool], pairs: CleanPairs) -> None:
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
    """See, before anything is trained, that a tokenizer takes a task's pairs and that one of them fits.

    Raises:
        DataError: none fits, or the chat template refuses one of the first.
        ModelError: the pairs are conversational and the tokenizer has no chat template.
    """
    with _of_task(task):
        check_template(tokenizer, pairs.conversational)
        found = (tokens for chunk in tokenize(tokenizer, pairs, max_length) for _, tokens in chunk)
        if not any(_is_usable(tokens, Counter()) for tokens in found):
            raise _nothing_fits(len(pairs), max_length)


@contextmanager
def _of_task(task: str) -> Iterator[None]:
    """Name the task in what is said of its data."""
    try:
        yield
    except (DataError, ModelError) as error:
        raise type(error)(f"task {task}: {error}") from error


def _nothing_fits(count: int, max_length: int) -> DataError:
    return DataError(f"none of its {count} pairs fits max_length={max_length} tokens; raise 'max_length'")


class _Usable(NamedTuple):
    """The tokenised pairs of a task and their ranks, in the order of these; what was read and dropped."""

    rows: OrderedRows
    ranks: Ranks
    counts: Counter[str]


def _usable_pairs(
    task: TaskSpec,
    settings: DataSettings,
    tokenizer: "PreTrainedTokenizerBase",
    verifiers: Verifiers,
    scratch: Path,
) -> _Usable:
    file = PairFile(scratch / f"{task.name}.jsonl")
    pairs, counts = read_pairs(task, settings.seed, verifiers, file)
    places = np.empty(len(pairs), dtype=np.int32)
    places[np.argsort(pairs.ranks, kind="stable")] = np.arange(len(pairs), dtype=np.int32)
    row_bytes = 3 * file.path.stat().st_size / counts["read"]  # as text and as ids
    rows = OrderedRows(scratch / task.name, split_schema(pairs.conversational), row_bytes)
    fits = np.zeros(len(pairs), dtype=np.bool_)
    done = 0
    with _of_task(task.name):
        check_template(tokenizer, pairs.conversational)
        for chunk in tokenize(tokenizer, pairs, settings.max_length):
            here = slice(done, done := done + len(chunk))
            fits[here] = [_is_usable(tokens, counts) for _, tokens in chunk]
            if usable := list(compress(chunk, fits[here])):
                rows.add(_batch(task.name, usable, rows.schema), places[here][fits[here]])
        if not fits.any():
            raise _nothing_fits(len(pairs), settings.max_length)
    file.path.unlink()
    ranks = pairs.ranks[fits]
    ranks.sort()
    return _Usable(rows, ranks, counts)


def _is_usable(tokens: Tokens | None, counts: Counter[str]) -> bool:
    """Whether a pair can be used; what is dropped or cut is counted."""
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
