"""What a user sees of the data before training: the statistics card, and pairs as the model will see them."""

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow.parquet as pq

from automixalign.config.data import TaskSpec
from automixalign.config.experiment import Experiment
from automixalign.config.plan import Plan
from automixalign.data.prepare import prepare_data
from automixalign.data.store import IDS, TRAIN, split_path
from automixalign.models.inspect import Outline, read_outline
from automixalign.models.prepare import transformers_silenced
from automixalign.preflight.validate import pinned
from automixalign.scoring.verifiers.registry import make_verifier
from automixalign.system.errors import ConfigError
from automixalign.system.schema import did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ShownPair(NamedTuple):
    """A training pair as the texts of its tokens, special tokens included."""

    pair_id: str
    prompt: str
    """What the model reads; nothing of it is trained."""
    chosen: str
    rejected: str
    swapped: bool
    """Whether `label_noise` has exchanged the sides."""


class DataView(NamedTuple):
    """The prepared data of some tasks."""

    card: dict[str, Any]
    """As `automixalign.data.card` describes it."""
    pairs: dict[str, list[ShownPair]]
    """Task -> its first training pairs. They are in a random order, which the seed determines."""


def view_data(experiment: Experiment, tasks: Sequence[str], rows: int) -> DataView:
    """Prepare the data of some tasks as the run will, and show it. Sources on a network are read too.

    Args:
        experiment: the configuration.
        tasks: their names; none for all tasks. A prompt that a task shares with one left out may then be in
            another split than in the run.
        rows: the number of pairs to show of each task.

    Raises:
        ConfigError: there is no such task.
        DataError, ModelError, StorageError: as `prepare_data` and `read_outline` raise.
    """
    experiment = pinned(_with_tasks(experiment, tasks))
    with tempfile.TemporaryDirectory() as scratch:
        outline = read_outline(experiment.base_model, Path(scratch))
        with prepared(experiment, experiment.tasks, outline) as (card, data):
            names = [task["name"] for task in card["tasks"]]
            return DataView(card, {name: first_pairs(data, name, outline.tokenizer, rows) for name in names})


def _with_tasks(experiment: Experiment, names: Sequence[str]) -> Experiment:
    known = [task.name for task in experiment.tasks]
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(f"--task {name:.80}: there is no such task{hint}; there are: {', '.join(known)}")
    tasks = [task for task in experiment.tasks if task.name in names]
    return experiment.model_copy(update={"tasks": tasks or experiment.tasks})


@contextmanager
def prepared(
    experiment: Experiment, tasks: Sequence[TaskSpec], outline: Outline
) -> Iterator[tuple[dict[str, Any], Path]]:
    """The card and the data folder of some tasks, which the end of the context removes."""
    some = experiment.model_copy(update={"tasks": list(tasks)})
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        with transformers_silenced():
            settings, vocabulary = Plan.of(some, defaultdict(str)).data, outline.vocabulary
            card = prepare_data(settings, outline.tokenizer, make_verifier, data, vocabulary)
        yield card, data


def first_pairs(data: Path, task: str, tokenizer: "PreTrainedTokenizerBase", count: int) -> list[ShownPair]:
    """The first training pairs of a task in a data folder."""
    with pq.ParquetFile(split_path(data, task, TRAIN)) as file:
        batches = file.iter_batches(max(1, count), columns=[*IDS, "swapped"])
        rows = [row for batch in islice(batches, 1) for row in batch.to_pylist()][:count]

    def text(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    return [
        ShownPair(
            row["pair_id"],
            text(row["prompt_ids"]),
            text(row["chosen_ids"]),
            text(row["rejected_ids"]),
            row["swapped"],
        )
        for row in rows
    ]
