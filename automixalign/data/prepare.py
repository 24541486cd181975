"""Prepare the data of an experiment: read, clean, limit, tokenise, split, card."""

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from automixalign import files, progress
from automixalign.base_model import check_positions
from automixalign.config import TaskSpec
from automixalign.data.pairs import Pair, clean, text_of
from automixalign.data.read import read_rows
from automixalign.data.split import SPLITS, TRAIN, split_tasks
from automixalign.data.store import split_path, task_digest
from automixalign.data.tokens import Tokens, check_template, tokenize
from automixalign.errors import DataError, ModelError
from automixalign.settings import DataSettings
from automixalign.tracking.record import Dataset
from automixalign.verifiers import VERIFIERS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prepare_data(settings: DataSettings, base_model: Path, output: Path) -> dict[str, Any]:
    """Write every task's splits as Parquet and a statistics card, for the tokenizer of `base_model`.

    Returns:
        The card: per task what was read, dropped and why, the sizes of its splits and lengths in tokens.

    Raises:
        DataError: a malformed row (file and line), a task that is left without pairs, or messages that the
            chat template refuses.
        ModelError: conversational data and a tokenizer without chat template.
        ConfigError: `max_length` is more than the model takes.
    """
    from automixalign import models  # with torch, for which the command line does not wait

    check_positions(models.load_config(base_model), settings.max_length)
    tokenizer = models.load_tokenizer(base_model)
    pairs: dict[str, list[Pair]] = {}
    counts: dict[str, Counter[str]] = {}
    tokens: dict[str, Tokens] = {}
    for task in settings.tasks:
        pairs[task.name], counts[task.name] = _usable_pairs(task, settings, tokenizer, tokens)
    splits = split_tasks(pairs, settings.split, settings.seed)
    for name, parts in splits.items():
        counts[name]["over_cap"] = len(pairs[name]) - sum(map(len, parts.values()))
    with files.replacing(output) as folder:
        cards = []
        for task in settings.tasks:
            swapped = _noisy(splits[task.name][TRAIN], task, settings.seed)
            for split in SPLITS:
                table = _table(task.name, splits[task.name][split], tokens, swapped)
                files.write_table(split_path(folder, task.name, split), table)
            card = _card(task, splits[task.name], counts[task.name], tokens)
            cards.append(card | {"swapped": len(swapped), "digest": task_digest(folder, task.name)})
        result = {"max_length": settings.max_length, "seed": settings.seed, "tasks": cards}
        files.write_json(folder / "card.json", result)
    _record(cards, output)
    return result


def _record(cards: list[dict[str, Any]], output: Path) -> None:
    """Tell MLflow what the data was."""
    record = progress.current().record
    record.of_pipeline = True
    record.add_artifact(output / "card.json", "data/card.json")
    for card in cards:
        sizes = {f"pairs_{split}": count for split, count in card["pairs"].items()}
        record.datasets.append(
            Dataset(name=card["name"], digest=card["digest"], source=card["source"], profile=sizes)
        )


def read_pairs(task: TaskSpec, seed: int) -> tuple[list[Pair], Counter[str]]:
    """The clean pairs of a task's source, `task.limit` at most, and how many rows were read and dropped.

    Raises:
        DataError: a malformed row (file and line), no pair at all, text and messages in one task, or a pair
            without an answer that the task's verifier can use.
    """
    pairs, counts = clean(read_rows(task, seed))
    if not pairs:
        dropped = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        raise DataError(f"task {task.name}: {task.source} holds no usable pair ({dropped})")
    if len({isinstance(pair.prompt, str) for pair in pairs}) > 1:
        raise DataError(f"task {task.name}: mixes plain-text and conversational rows; use one form a task")
    if task.verifier:
        _check_answers(task.name, task.verifier, pairs)
    if task.limit is not None and len(pairs) > task.limit:
        chosen = random.Random(f"limit:{seed}:{task.name}").sample(range(len(pairs)), task.limit)
        counts["over_limit"] = len(pairs) - task.limit
        pairs = [pairs[index] for index in sorted(chosen)]
    return pairs, counts


def _check_answers(task: str, verifier: str, pairs: list[Pair]) -> None:
    for pair in pairs:
        if pair.answer is None:
            problem = "needs an 'answer' in every row; there is none"
        elif not VERIFIERS[verifier](pair.answer, pair.answer):
            problem = f"can never pass the answer {pair.answer!r:.80}, which is given"
        else:
            continue
        raise DataError(
            f"task {task}: the verifier {verifier!r} {problem} for the prompt {text_of(pair.prompt)!r:.80}"
        )


def check_rendering(
    task: str, pairs: list[Pair], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> None:
    """See, before anything is trained, that a tokenizer takes a task's pairs and that one of them fits.

    Raises:
        DataError: none fits, or the chat template refuses one before.
        ModelError: the pairs are conversational and the tokenizer has no chat template.
    """
    with _of_task(task):
        check_template(tokenizer, pairs[0])
        fitting = (tokenize(tokenizer, pair, max_length) for pair in pairs)
        if not any(tokens is not None and tokens.chosen != tokens.rejected for tokens in fitting):
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


def _usable_pairs(
    task: TaskSpec,
    settings: DataSettings,
    tokenizer: "PreTrainedTokenizerBase",
    tokens: dict[str, Tokens],
) -> tuple[list[Pair], Counter[str]]:
    pairs, counts = read_pairs(task, settings.seed)
    usable = []
    with _of_task(task.name):
        check_template(tokenizer, pairs[0])
        for pair in pairs:
            found = tokenize(tokenizer, pair, settings.max_length)
            if found is None:
                counts["prompt_too_long"] += 1
            elif found.chosen == found.rejected:
                counts["identical_when_cut"] += 1
            else:
                counts["cut"] += found.truncated
                tokens[pair.pair_id] = found
                usable.append(pair)
        if not usable:
            raise _nothing_fits(len(pairs), settings.max_length)
    return usable, counts


def _noisy(train: list[Pair], task: TaskSpec, seed: int) -> set[str]:
    """The training pairs whose sides are swapped, as `label_noise` asks."""
    draw = random.Random(f"noise:{seed}:{task.name}")
    count = round(task.label_noise * len(train))
    return {pair.pair_id for pair in draw.sample(train, count)}


def _table(task: str, pairs: list[Pair], tokens: dict[str, Tokens], swapped: set[str]) -> pa.Table:
    rows = []
    for pair in pairs:
        ids = tokens[pair.pair_id]
        sides = [(pair.chosen, ids.chosen), (pair.rejected, ids.rejected)]
        if pair.pair_id in swapped:
            sides.reverse()
        rows.append(
            {
                "pair_id": pair.pair_id,
                "task": task,
                "prompt": pair.prompt,
                "chosen": sides[0][0],
                "rejected": sides[1][0],
                "prompt_ids": ids.prompt,
                "chosen_ids": sides[0][1],
                "rejected_ids": sides[1][1],
                "answer": pair.answer,
                "swapped": pair.pair_id in swapped,
            }
        )
    conversational = bool(pairs) and not isinstance(pairs[0].prompt, str)
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    turn = pa.list_(message) if conversational else pa.string()
    ids_type = pa.list_(pa.int32())
    schema = pa.schema(
        [("pair_id", pa.string()), ("task", pa.string())]
        + [(name, turn) for name in ("prompt", "chosen", "rejected")]
        + [(name, ids_type) for name in ("prompt_ids", "chosen_ids", "rejected_ids")]
        + [("answer", pa.string()), ("swapped", pa.bool_())]
    )
    return pa.Table.from_pylist(rows, schema=schema)


def _card(
    task: TaskSpec, splits: dict[str, list[Pair]], counts: Counter[str], tokens: dict[str, Tokens]
) -> dict[str, Any]:
    everything = [tokens[pair.pair_id] for part in splits.values() for pair in part]
    lengths = {
        "prompt": [len(ids.prompt) for ids in everything],
        "chosen": [len(ids.chosen) for ids in everything],
        "rejected": [len(ids.rejected) for ids in everything],
    }
    return {
        "name": task.name,
        "source": task.source,
        "rows": dict(counts),
        "pairs": {split: len(part) for split, part in splits.items()},
        "prompts": {split: len({pair.prompt_key for pair in part}) for split, part in splits.items()},
        "tokens": {
            name: {"mean": round(sum(values) / len(values), 1), "max": max(values)}
            for name, values in lengths.items()
        },
    }
