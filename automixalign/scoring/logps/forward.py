"""The log-probabilities of both sides of every pair, from one forward pass; scoring and training share it."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from automixalign.models.load import device
from automixalign.scoring.logps.batch import PairBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FUSED = "_automixalign_fused_head"


def fuses_head() -> bool:
    """Whether the head computes log-probabilities without storing all logits at once; on CPUs that is slow."""
    return device().type == "cuda"


def prepare_head(model: "PreTrainedModel") -> None:
    """Give a model the head that `side_logps` calls; before it gets an adapter, or is divided or wrapped."""
    if not fuses_head() or hasattr(model, _FUSED):
        return
    from trl.trainer.utils import add_fused_lm_head

    add_fused_lm_head(model)
    setattr(model, _FUSED, True)


def side_logps(model: Any, batch: PairBatch) -> Tensor:
    """Log-probabilities of the completions.

    Args:
        model: a causal language model in the context of `attending`.
        batch: the pairs, in the layout of that context, on the model's device.

    Returns:
        Chosen and rejected, in nats, summed over the tokens, shape (pairs, 2).
    """
    options: dict[str, Any] = {**batch.inputs, "use_cache": False}
    if batch.trees and not batch.blocks:
        options["trees"] = batch.trees
    if fuses_head():
        labels = torch.full_like(batch.inputs["input_ids"], -100)
        labels[batch.rows, batch.columns] = batch.targets
        logps = model(**options, shift_labels=labels, fused_lm_head=True).log_probs[batch.rows, batch.columns]
    else:
        logps = -cross_entropy(_logits(model, batch, options).float(), batch.targets, reduction="none")
    return torch.stack([side.sum() for side in logps.split(batch.sizes)]).view(-1, 2)


def _logits(model: Any, batch: PairBatch, options: dict[str, Any]) -> Tensor:
    """Logits only where a token of a side is predicted, as the head's product is the largest of the model."""
    if batch.trees:
        logits: Tensor = model(**options, logits_to_keep=batch.columns).logits[0]
        return logits
    last = model(**options, logits_to_keep=batch.last_columns).logits
    return last[batch.rows, batch.columns - (batch.inputs["input_ids"].shape[1] - batch.last_columns)]  # type: ignore[no-any-return]
