"""Log-probabilities of preference pairs under a model, and the preference losses that follow."""

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from automixalign.config.settings import PLAIN, Loading
from automixalign.method.losses import Loss
from automixalign.models.load import autocast
from automixalign.scoring.caches import CHOSEN, REJECTED, Floats, column
from automixalign.scoring.logps.batch import PairIds
from automixalign.scoring.logps.forward import side_logps
from automixalign.scoring.logps.layout import attending
from automixalign.steps.step import current_step
from automixalign.system import heap
from automixalign.system.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Scorer:
    """Scores pairs with a model.

    Args:
        model: the policy, on its device.
        batch_size: sequences in a forward pass; a pair has two.
        precision: of the forward pass: `auto`, `fp32` or `bf16`. The log-softmax is always fp32.
        loading: how the model was loaded; it names the attention.
        reports: whether the scored pairs are the progress of the stage.
    """

    model: "PreTrainedModel"
    batch_size: int
    precision: str
    loading: Loading = PLAIN
    reports: bool = True

    def logps(self, table: pa.Table) -> tuple[Floats, Floats]:
        """Log-probabilities of each pair's chosen and rejected completion.

        Args:
            table: the pairs' token ids, as `read_split` returns them.

        Returns:
            Chosen and rejected, in nats, summed over the completion's tokens; each has the shape (pairs,).

        Raises:
            ModelError: the model gives values that are not finite.
        """
        rows, logps = self.share(table, slice(None))
        result = np.zeros((len(table), 2))
        result[rows] = logps
        return result[:, 0], result[:, 1]

    @torch.inference_mode()
    def share(self, table: pa.Table, batches: slice) -> tuple[list[int], Floats]:
        """Log-probabilities of the pairs of some batches, which are formed of all pairs.

        Args:
            table: the pairs' token ids, as `read_split` returns them.
            batches: which of the batches.

        Returns:
            The rows of the pairs, and their chosen and rejected log-probabilities, shape (pairs, 2).

        Raises:
            ModelError: the model gives values that are not finite.
        """
        columns = (table.column(f"{name}_ids").to_pylist() for name in PairIds._fields)
        pairs = [PairIds(*ids) for ids in zip(*columns, strict=True)]
        # Batches of similar lengths: a batch of mixed lengths computes mostly padding.
        order = sorted(range(len(pairs)), key=lambda index: pairs[index].size)
        size = max(1, self.batch_size // 2)
        own = [order[at : at + size] for at in range(0, len(order), size)][batches]
        tokens = np.array([sum(pairs[index].size for index in rows) for rows in own])
        work = len(pairs) * tokens / tokens.sum()  # in pairs of mean length
        scored: list[torch.Tensor] = []
        self.model.eval()
        heap.keep_freed_memory()
        with attending(self.model, self.loading) as layout, autocast(self.precision):
            for rows in current_step().track(own, len(pairs), work) if self.reports else own:
                batch = layout.batch([pairs[index] for index in rows]).to(self.model.device)
                scored.append(side_logps(self.model, batch))
        # To read each batch's results at once would make the GPU wait for the next batch.
        none = torch.zeros(0, 2, device=self.model.device)
        logps = torch.cat([none, *scored]).double().cpu().numpy()
        rows = list(chain.from_iterable(own))
        if not np.isfinite(logps).all():
            bad = table.column("pair_id")[min(np.array(rows)[~np.isfinite(logps).all(1)].tolist())]
            raise ModelError(
                f"the model gives a log-probability that is not finite, first for pair {bad}: its training "
                "diverged (lower the learning rate), or it overflows in this precision"
            )
        return rows, logps

    def scores(self, pairs: pa.Table) -> pa.Table:
        """The columns `pair_id`, `chosen_logps` and `rejected_logps` of all pairs, in the same order."""
        chosen, rejected = self.logps(pairs) if len(pairs) else (np.zeros(0), np.zeros(0))
        return pa.table({"pair_id": pairs.column("pair_id"), CHOSEN: chosen, REJECTED: rejected})


def log_ratios(scores: pa.Table, reference_logps: pa.Table) -> tuple[Floats, Floats]:
    """log pi_theta - log pi_ref of the chosen and of the rejected completions; each has the shape (pairs,).

    Both tables have their rows in the same order.
    """
    chosen, rejected = (column(scores, side) - column(reference_logps, side) for side in (CHOSEN, REJECTED))
    return chosen, rejected


def pair_losses(loss: Loss, scores: pa.Table, reference_logps: pa.Table, pairs: pa.Table) -> Floats:
    """L of every pair in float64, shape (pairs,). All tables have their rows in the same order."""
    lengths = (pc.list_value_length(pairs.column(name)).to_numpy() for name in ("chosen_ids", "rejected_ids"))
    parts = (
        torch.tensor(values, dtype=torch.float64) for values in (*log_ratios(scores, reference_logps), *lengths)
    )
    return np.asarray(loss.per_pair(*parts).numpy())
