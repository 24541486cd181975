"""Score pairs with one model, in this process or in several of this machine.

Batches are formed as one process forms them, and each process gets whole batches. So a log-probability is the
same to the bit for any number of processes, if each has as many threads as the one. On CPUs, the number of
threads can change the last bit of a matrix product.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa

from automixalign.config.settings import Loading, Precision
from automixalign.data.store import IDS, read_split
from automixalign.models.load import load_model
from automixalign.scoring.caches import CHOSEN, REJECTED
from automixalign.scoring.scorer import Scorer
from automixalign.steps.jobs.job import Job, rank, world_size
from automixalign.steps.jobs.launch import run_job
from automixalign.steps.step import current_step
from automixalign.system.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Split: TypeAlias = tuple[str, str]
"""A task and a split."""
Share: TypeAlias = dict[str, Any]
"""What one process returns."""


class Scoring(Job):
    """What to score with a model."""

    model: Path | None
    """None if there is nothing to do."""
    base_model: Path | None = None
    """The model under a LoRA adapter."""
    data: Path
    loading: Loading
    batch_size: int
    """Sequences in a forward pass; a pair has two."""
    precision: Precision
    pairs: list[Split]
    """The splits to score."""
    pair_ids: frozenset[str] | None = None
    """The pairs to score; None for all of the splits."""
    reports: bool = True
    """Whether the scored pairs are the progress of the stage."""

    def scores(self, processes: int) -> dict[Split, pa.Table]:
        """The scores of each split, in the order of its pairs, as `Scorer.scores` returns them.

        Args:
            processes: of this machine, which share the batches.

        Raises:
            ModelError: the model cannot be loaded, or gives values that are not finite.
        """
        return self.tables(run_job(self, processes))

    def tables(self, shares: Sequence[Share]) -> dict[Split, pa.Table]:
        """The scores of each split from what the processes return."""
        tables = {}
        for number, split in enumerate(self.pairs):
            ids = self._read(split, "pair_id").column("pair_id")
            rows = in_order((share["scores"][number] for share in shares), len(ids))
            chosen, rejected = zip(*rows, strict=True) if rows else ((), ())
            floats = {CHOSEN: pa.array(chosen, pa.float64()), REJECTED: pa.array(rejected, pa.float64())}
            tables[split] = pa.table({"pair_id": ids, **floats})
        return tables

    def run(self, scratch: Path) -> Share:
        if self.model is None:
            raise ModelError("a model is needed to score or to answer, and none is given")
        model = load_model(self.model, self.base_model, self.loading, self.precision)
        return self.share(model, slice(rank(), None, world_size()))

    def share(self, model: "PreTrainedModel", own: slice) -> Share:
        """This process's part: for each split, the rows that it scores and their log-probabilities.

        Args:
            model: the model on its device.
            own: the batches of this process.
        """
        scorer = Scorer(model, self.batch_size, self.precision, self.loading, self.reports)
        tables = [self._read(split, *IDS) for split in self.pairs]
        scores = []
        with current_step().whole(sum(map(len, tables))):
            for table in tables:
                rows, logps = scorer.share(table, own)
                scores.append([[row, *both] for row, both in zip(rows, logps.tolist(), strict=True)])
        return {"scores": scores}

    def _read(self, split: Split, *columns: str) -> pa.Table:
        table = read_split(self.data, *split, columns)
        if self.pair_ids is None:
            return table
        return table.filter([pair_id in self.pair_ids for pair_id in table.column("pair_id").to_pylist()])


def in_order(shares: Iterable[list[list[Any]]], count: int) -> list[list[Any]]:
    """The results of `count` rows in order, from shares whose results begin with the number of their row."""
    results: list[list[Any]] = [[]] * count
    for row, *result in chain.from_iterable(shares):
        results[row] = result
    return results
