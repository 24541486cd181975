"""Log-probabilities of preference pairs under a model, and the preference losses that follow from them."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from automixalign.config.evaluation import ScoringSettings
from automixalign.data.store import SPLITS, read_split, tasks_of
from automixalign.method.losses import Loss
from automixalign.models.load import autocast, load_full_model
from automixalign.scoring.caches import CHOSEN, REJECTED, Floats, column, write_cache
from automixalign.scoring.logps.batch import PairIds
from automixalign.scoring.logps.forward import batch_of, packing, side_logps
from automixalign.steps.step import current_step
from automixalign.storage import files
from automixalign.system import heap
from automixalign.system.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Scorer:
    """A model to score with.

    Args:
        model: the policy, on its device.
        batch_size: sequences a forward pass, two a pair.
        precision: `auto`, `fp32` or `bf16`, of the forward pass; log-softmax is always fp32.
    """

    model: "PreTrainedModel"
    batch_size: int
    precision: str

    @torch.inference_mode()
    def logps(self, table: pa.Table) -> tuple[Floats, Floats]:
        """Log-probability of each pair's chosen and rejected completion, summed over tokens, shape (pairs,).

        Raises:
            ModelError: the model gives values that are not finite.
        """
        columns = (table.column(f"{name}_ids").to_pylist() for name in PairIds._fields)
        pairs = [PairIds(*ids) for ids in zip(*columns, strict=True)]
        # Alike lengths together: padding is what a batch of mixed lengths mostly computes.
        order = sorted(range(len(pairs)), key=lambda index: pairs[index].size)
        size = max(1, self.batch_size // 2)
        batches = [order[at : at + size] for at in range(0, len(order), size)]
        result = np.zeros((len(pairs), 2))
        self.model.eval()
        heap.keep_freed_memory()
        with packing(self.model) as packed:
            for rows in current_step().track(batches, len(batches)):
                batch = batch_of([pairs[index] for index in rows], packed).to(self.model.device)
                with autocast(self.precision):
                    result[rows] = side_logps(self.model, batch).double().cpu().numpy()
        if not np.isfinite(result).all():
            bad = table.column("pair_id")[int(np.flatnonzero(~np.isfinite(result).all(1))[0])]
            raise ModelError(
                f"the model gives a log-probability that is not finite, first for pair {bad}: its training "
                "diverged (lower the learning rate), or it overflows in this precision"
            )
        return result[:, 0], result[:, 1]


def log_ratios(scores: pa.Table, reference_logps: pa.Table) -> tuple[Floats, Floats]:
    """log pi_theta - log pi_ref of chosen and rejected, for rows in the same order in both tables, (pairs,)."""
    chosen, rejected = (column(scores, side) - column(reference_logps, side) for side in (CHOSEN, REJECTED))
    return chosen, rejected


def pair_losses(loss: Loss, scores: pa.Table, reference_logps: pa.Table, pairs: pa.Table) -> Floats:
    """L of every pair in float64, for rows in the same order in all tables, shape (pairs,)."""
    lengths = (pc.list_value_length(pairs.column(name)).to_numpy() for name in ("chosen_ids", "rejected_ids"))
    parts = (
        torch.tensor(values, dtype=torch.float64) for values in (*log_ratios(scores, reference_logps), *lengths)
    )
    return np.asarray(loss.per_pair(*parts).numpy())


def write_reference_logps(
    settings: ScoringSettings, data: Path, base_model: Path, output: Path
) -> dict[str, Any]:
    """Score every pair of every task under the reference model: a cache a task, `OUTPUT/TASK`.

    Returns:
        The caches' manifests, by task.
    """
    scorer = Scorer(load_full_model(base_model), settings.batch_size, settings.precision)
    model = files.digest(base_model)
    with files.replacing(output) as folder:
        manifests = {}
        for task in tasks_of(data):
            tables = {split: scores_of(scorer, read_split(data, task, split)) for split in SPLITS}
            facts = {"model": model, "precision": settings.precision}
            manifests[task] = write_cache(folder / task, task, tables, data, **facts)
    return manifests


def scores_of(scorer: Scorer, pairs: pa.Table) -> pa.Table:
    """`pair_id`, `chosen_logps`, `rejected_logps` of every pair, in their order."""
    chosen, rejected = scorer.logps(pairs) if len(pairs) else (np.zeros(0), np.zeros(0))
    return pa.table({"pair_id": pairs.column("pair_id"), CHOSEN: chosen, REJECTED: rejected})
