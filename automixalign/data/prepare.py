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
from automixalign.data.read_task import Verifiers, open_task
from automixalign.data.split import split_tasks
from automixalign.data.task_pairs import tokenize_task
from automixalign.data.tokens import asks_for_date
from automixalign.data.write import write_splits
from automixalign.steps.step import current_step
from automixalign.steps.tracking.record import Dataset
from automixalign.storage import files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
        The card, as `card.py` describes it.

    Raises:
        DataError: malformed rows (file and line), a task without usable pairs, or messages that the chat
            template refuses.
        ModelError: conversational data and a tokenizer without chat template.
    """
    with files.replacing(output) as folder, ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder.parent)))
        tasks = {}
        for task in settings.tasks:
            reader = stack.enter_context(open_task(task, settings.seed, verifiers))
            tasks[task.name] = tokenize_task(reader, settings, tokenizer, scratch / task.name)
        labels = split_tasks({name: pairs.candidates for name, pairs in tasks.items()}, settings.split)
        cards = []
        for name, pairs in tasks.items():
            written = write_splits(pairs, settings.seed, labels[name], folder)
            cards.append(describe_task(pairs, settings, labels[name]) | written)
        candidates = {name: pairs.candidates for name, pairs in tasks.items()}
        card = describe(settings, candidates, cards, dated=settings.date is None and asks_for_date(tokenizer))
        files.write_json(folder / "card.json", card)
    for warning in card["warnings"]:
        current_step().warn(warning)
    _record(card["tasks"], output)
    return card


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
