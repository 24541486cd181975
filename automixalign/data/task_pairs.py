"""The pairs of one task on their way: read, cleaned, drawn and tokenised, not split yet."""

import datetime
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from automixalign.config.data import DataSettings, LongAnswers, TaskSpec
from automixalign.data.clean import Candidates, Collector, Fate
from automixalign.data.draw import draw
from automixalign.data.external_sort import ExternalSort, Numbers
from automixalign.data.lengths import Lengths, length_code
from automixalign.data.pairs import TURNS, Message, Pair, Turn, content_text
from automixalign.data.read_task import TaskReader
from automixalign.data.store import split_schema
from automixalign.data.tokens import PairTokenizer, Tokens, check_template, chunks_of, tokenize
from automixalign.steps.step import current_step
from automixalign.system.errors import DataError, named
from automixalign.system.parallel import map_in_processes
from automixalign.system.processors import available_processors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_PROCESSES = 4
"""One process reads for the others, and has no time for more."""
_to_json = json.JSONEncoder(ensure_ascii=False).encode


class Notes:
    """What tokenising a task showed, for its card."""

    def __init__(self) -> None:
        self.prompt_cut = 0
        """Pairs whose prompt is no prefix of prompt and answer."""
        self.lost: Counter[str] = Counter()
        """What the chat template leaves out -> the number of pairs."""
        self._numbers: list[Numbers] = []
        self._fates, self._lengths = bytearray(), bytearray()

    def add(self, numbers: Numbers, chunk: "TokenizedChunk") -> None:
        """Take a chunk of pairs, and their numbers."""
        self._numbers.append(numbers.astype(np.int32))
        self._fates += chunk.fates
        self._lengths += chunk.lengths
        self.prompt_cut += chunk.prompt_cut
        self.lost.update(chunk.lost)

    def settle(self, candidates: Candidates) -> None:
        """Give the pairs that were tokenised their fates; the others have one already."""
        fates = np.zeros(len(candidates), dtype=np.uint8)
        fates[self._all_numbers()] = np.frombuffer(self._fates, dtype=np.uint8)
        candidates.settle(fates)

    def lengths(self, candidates: Candidates) -> Lengths:
        """The lengths of the pairs that were tokenised and are no repetitions, if their prompts fit."""
        left_out = (Fate.DUPLICATE, Fate.CONTRADICTORY, Fate.PROMPT_TOO_LONG)
        counted = ~np.isin(candidates.fates[self._all_numbers()], left_out)
        return np.frombuffer(self._lengths, dtype=np.uint8)[counted]

    def _all_numbers(self) -> npt.NDArray[np.int32]:
        return np.concatenate([*self._numbers, np.empty(0, dtype=np.int32)])


class TokenLimits(Protocol):
    """The keys of an experiment that decide on the tokens of a pair."""

    @property
    def max_length(self) -> int: ...
    @property
    def long_answers(self) -> LongAnswers: ...
    @property
    def date(self) -> datetime.date | None: ...


@dataclass
class TaskPairs:
    """A task's pairs with their tokens."""

    reader: TaskReader
    identical_sides: dict[int, int]
    """Source -> the number of its pairs whose sides are the same."""
    candidates: Candidates
    rows: ExternalSort
    notes: Notes

    @property
    def task(self) -> TaskSpec:
        """The task."""
        return self.reader.task


def read_candidates(reader: TaskReader, seed: int, collector: Collector) -> Candidates:
    """Read all pairs of a task, find those that teach nothing, and draw those that its limits leave.

    Args:
        seed: the seed of the draw.
        collector: takes the pairs.

    Raises:
        DataError: malformed rows, no usable pair, or text and messages in one task.
    """
    for source, pair in reader:
        collector.add(source, pair)
    return _finish(reader, collector, seed)


def _finish(reader: TaskReader, collector: Collector, seed: int) -> Candidates:
    candidates = collector.finish()
    if not (candidates.fates == Fate.USED).any():
        counts = sum(reader.counts, Counter(identical_sides=sum(collector.identical_sides.values())))
        counts += Counter(Fate(fate).name.lower() for fate in candidates.fates.tolist())
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        raise DataError(
            f"task {reader.task.name}: {reader.task.source_names} holds no usable pair ({reasons or '0 read'})"
        )
    draw(reader.task, candidates, seed)
    return candidates


def check_rendering(reader: TaskReader, tokenizer: "PreTrainedTokenizerBase", settings: TokenLimits) -> None:
    """Check that a tokenizer renders the pairs of a task up to the first that can be used.

    Raises:
        DataError: no pair can be used, or the chat template refuses one before it.
        ModelError: the pairs are conversational and the tokenizer has no chat template.
    """
    fates: Counter[Fate] = Counter()
    with named(f"task {reader.task.name}"):
        pairs = _checked((pair for _, pair in reader), tokenizer)
        for chunk in tokenize(tokenizer, pairs, settings.max_length, settings.date):
            fates.update(_fate(each, settings.long_answers) for each in chunk.tokens)
            if fates[Fate.USED]:
                return
        raise _nothing_fits(fates, settings)


def _checked(pairs: Iterable[Pair], tokenizer: "PreTrainedTokenizerBase") -> Iterator[Pair]:
    """The same pairs, the first of them checked against the tokenizer."""
    for number, pair in enumerate(pairs):
        if number == 0:
            check_template(tokenizer, not isinstance(pair.prompt, str))
        yield pair


def _fate(tokens: Tokens, long_answers: LongAnswers) -> Fate:
    if not tokens.fits:
        return Fate.PROMPT_TOO_LONG
    if long_answers == "drop" and (tokens.long_chosen or tokens.long_rejected):
        return Fate.LONG_ANSWER
    return Fate.IDENTICAL_WHEN_CUT if tokens.chosen == tokens.rejected else Fate.USED


def _nothing_fits(fates: Counter[Fate], settings: TokenLimits) -> DataError:
    reasons = ", ".join(f"{count} {fate.name.lower()}" for fate, count in fates.items())
    advice = ", or set 'long_answers: cut'" if fates[Fate.LONG_ANSWER] else ""
    return DataError(
        f"no pair fits max_length={settings.max_length} tokens ({reasons}); raise 'max_length'{advice}"
    )


def tokenize_task(
    reader: TaskReader,
    settings: DataSettings,
    tokenizer: "PreTrainedTokenizerBase",
    collector: Collector,
    candidates: Candidates | None,
    scratch: Path,
    vocabulary: int | None = None,
) -> TaskPairs:
    """Read, clean, draw and tokenise the pairs of a task.

    Args:
        settings: `seed`, `max_length`, `long_answers` and `date`.
        collector: takes the pairs, if `candidates` is None.
        candidates: what an earlier reading found; only those still used are then tokenised.
        scratch: a new folder for files, which are removed while they are read.
        vocabulary: rows of the model's embedding; None for as many as the tokenizer has tokens.

    Raises:
        DataError: malformed rows, no usable pair, text and messages in one task, no pair that fits, or a token
            without a row in the embedding.
        ModelError: the pairs are conversational and the tokenizer has no chat template.
    """
    if candidates is not None:
        drawn = np.flatnonzero(candidates.fates == Fate.USED)
        pairs = candidates.used_among(pair for _, pair in reader)
    else:
        pairs = (pair for source, pair in reader if collector.add(source, pair))
    notes, rows, start = Notes(), None, 0
    tokenized = _Tokenized(reader.task.name, tokenizer, settings, vocabulary)
    chunks = chunks_of(_checked(pairs, tokenizer))
    with named(f"task {reader.task.name}"):
        for chunk in map_in_processes(tokenized, chunks, min(_MAX_PROCESSES, available_processors())):
            end = start + len(chunk.fates)
            numbers = np.arange(start, end) if candidates is None else drawn[start:end]
            ranks = collector.ranks(start, end - start) if candidates is None else candidates.ranks[numbers]
            notes.add(numbers, chunk)
            if rows is None:
                rows = ExternalSort(scratch, chunk.rows.schema)
            usable = np.frombuffer(chunk.fates, dtype=np.uint8) == Fate.USED
            rows.add(chunk.rows, numbers[usable], ranks[usable])
            start = end
            current_step().report(start, 0 if candidates is None else len(drawn))
        candidates = candidates or _finish(reader, collector, settings.seed)
        notes.settle(candidates)
        if rows is None or not (candidates.fates == Fate.USED).any():
            raise _nothing_fits(Counter(map(Fate, candidates.fates.tolist())), settings)
    return TaskPairs(reader, collector.identical_sides, candidates, rows, notes)


class TokenizedChunk(NamedTuple):
    """What a process made of a chunk of pairs."""

    rows: pa.RecordBatch
    """The pairs that can be used."""
    fates: bytes
    """Of each pair."""
    lengths: bytes
    """Of each pair, the code of its tokens before any cut."""
    prompt_cut: int
    lost: Counter[str]


class _Tokenized:
    """Tokenises a chunk of pairs."""

    def __init__(
        self,
        task: str,
        tokenizer: "PreTrainedTokenizerBase",
        settings: TokenLimits,
        vocabulary: int | None = None,
    ) -> None:
        self._task, self._settings = task, settings
        self._further = set() if vocabulary is None else set(range(vocabulary, len(tokenizer)))
        self._token_of = tokenizer.convert_ids_to_tokens
        self._tokenize = PairTokenizer(tokenizer, settings.max_length, settings.date)

    def __call__(self, pairs: list[Pair]) -> TokenizedChunk:
        tokens = self._tokenize(pairs)
        fates = [_fate(each, self._settings.long_answers) for each in tokens]
        kept = [number for number, fate in enumerate(fates) if fate == Fate.USED]
        if self._further:
            self._check_vocabulary([pairs[number] for number in kept], [tokens[number] for number in kept])
        return TokenizedChunk(
            rows=_batch(
                self._task,
                [pairs[number] for number in kept],
                [tokens[number] for number in kept],
                pairs[0].prompt,
            ),
            fates=bytes(fates),
            lengths=bytes(length_code(each, self._settings.max_length) for each in tokens),
            prompt_cut=sum(each.prompt_cut for each in tokens),
            lost=Counter(each.lost for each in tokens if each.lost),
        )

    def _check_vocabulary(self, pairs: list[Pair], tokens: list[Tokens]) -> None:
        for pair, each in zip(pairs, tokens, strict=True):
            parts = (each.prompt, each.chosen, each.rejected, each.generation or [])
            for token in self._further.intersection(chain.from_iterable(parts)):
                raise DataError(
                    f"pair {pair.pair_id} has the token {self._token_of(token)!r} with the id {token}, and the "
                    f"base model's embedding has only {min(self._further)} rows; leave such rows out with "
                    "'where', or use another base model"
                )


def _batch(task: str, pairs: list[Pair], tokens: list[Tokens], prompt: Turn) -> pa.RecordBatch:
    schema = split_schema(not isinstance(prompt, str))
    columns: dict[str, Any] = {
        "pair_id": [pair.pair_id for pair in pairs],
        "task": pa.repeat(task, len(pairs)),
        "options": [pair.options and _to_json(pair.options) for pair in pairs],
        "answer": [pair.answer for pair in pairs],
        "row": [pair.row for pair in pairs],
        "swapped": pa.repeat(False, len(pairs)),
        "generation_ids": [each.generation for each in tokens],
    }
    for position, turn in enumerate(TURNS, start=1):  # of the fields of a pair
        columns[turn] = _stored([pair[position] for pair in pairs], schema.field(turn).type)
        columns[f"{turn}_ids"] = [each[position - 1] for each in tokens]
    return pa.RecordBatch.from_pydict(columns, schema=schema)


def _stored(turns: list[Any], kind: pa.DataType) -> pa.Array:
    """Turns with the fields of `split_schema`."""
    if kind == pa.string():
        return pa.array(turns)
    messages = list(chain.from_iterable(turns))
    fields = {
        "role": [message["role"] for message in messages],
        "content": [content_text(message) for message in messages],
        "more": [None if len(message) == 2 else _more(message) for message in messages],
    }
    arrays = [pa.array(fields[field.name], field.type) for field in kind.value_type]
    return pa.ListArray.from_arrays(_offsets(turns), pa.StructArray.from_arrays(arrays, fields=kind.value_type))


def _offsets(lists: list[Any]) -> pa.Array:
    offsets = np.zeros(len(lists) + 1, dtype=np.int32)
    np.cumsum(np.fromiter(map(len, lists), dtype=np.int32, count=len(lists)), out=offsets[1:])
    return pa.array(offsets)


def _more(message: Message) -> str | None:
    """What a message holds besides role and text, as JSON."""
    more = {key: value for key, value in message.items() if key not in ("role", "content")}
    if isinstance(message.get("content"), list):
        more["content"] = message["content"]
    return _to_json(more) if more else None
