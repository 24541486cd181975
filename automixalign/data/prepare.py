"""The stage `prepare_data`: read, clean, draw, tokenise, split, describe.

Memory holds a few thousand pairs at a time, whatever the size of the data. Digests of fixed size identify the
pairs in comparisons, orders and splits.
"""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automixalign.config.data import DataSettings
from automixalign.data.card import describe, describe_task
from automixalign.data.clean import Collector
from automixalign.data.draw import is_drawn
from automixalign.data.overlap.decontaminate import Contamination
from automixalign.data.read_task import MakeVerifier, open_task
from automixalign.data.split import split_tasks
from automixalign.data.task_pairs import read_candidates, tokenize_task
from automixalign.data.tokenization.rendering import asks_for_date
from automixalign.data.write import write_splits
from automixalign.steps.step import current_step
from automixalign.steps.tracking.record import Dataset
from automixalign.storage import files
from automixalign.system.garbage import rare_collections

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from automixalign.data.overlap.near_duplicates import NearDuplicates


def prepare_data(
    settings: DataSettings,
    tokenizer: "PreTrainedTokenizerBase",
    make_verifier: MakeVerifier,
    output: Path,
    vocabulary: int | None = None,
) -> dict[str, Any]:
    """Write the splits of all tasks as Parquet, and a statistics card.

    Args:
        settings: the tasks, their splits and `max_length`.
        tokenizer: of the base model.
        make_verifier: makes the verifier of a task, which must pass the right answers of its rows.
        output: folder to write.
        vocabulary: rows of the model's embedding, if the tokenizer may have more tokens.

    Returns:
        The card, as `card.py` describes it.

    Raises:
        DataError: malformed rows (file and line), a task without usable pairs, messages that the chat template
            refuses, or a token without a row in the embedding.
        ModelError: conversational data and a tokenizer without chat template.
    """
    with rare_collections(), files.replacing(output) as folder, ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder.parent)))
        contamination = Contamination(settings.decontaminate) if settings.decontaminate else None
        index = _near_duplicates(settings.near_duplicates)
        readers = [
            stack.enter_context(open_task(task, settings.seed, make_verifier)) for task in settings.tasks
        ]
        collectors = {task.name: Collector(settings.seed, contamination, index) for task in settings.tasks}
        # Draws, and groups of prompts, need all pairs before the first is tokenised: a second reading.
        known = {
            reader.task.name: read_candidates(reader, settings.seed, collectors[reader.task.name])
            for reader in readers
            if index is not None or is_drawn(reader.task)
        }
        near_duplicates = None if index is None else index.join(known)
        tasks = {}
        for reader in readers:
            name = reader.task.name
            tasks[name] = tokenize_task(
                reader, settings, tokenizer, collectors[name], known.get(name), scratch / name, vocabulary
            )
        labels = split_tasks({name: pairs.candidates for name, pairs in tasks.items()}, settings.split)
        cards = []
        for name, pairs in tasks.items():
            written = write_splits(pairs, settings.seed, labels[name], folder)
            cards.append(describe_task(pairs, settings, labels[name]) | written)
        candidates = {name: pairs.candidates for name, pairs in tasks.items()}
        dated = settings.date is None and asks_for_date(tokenizer)
        card = describe(settings, candidates, cards, dated, near_duplicates)
        files.write_json(folder / "card.json", card)
    for warning in card["warnings"]:
        current_step().warn(warning)
    _record(card["tasks"], output)
    return card


def _near_duplicates(threshold: float | None) -> "NearDuplicates | None":
    if threshold is None:
        return None
    from automixalign.data.overlap.near_duplicates import NearDuplicates  # its library takes a while to import

    return NearDuplicates(threshold)


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
