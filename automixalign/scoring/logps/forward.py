"""The log-probabilities of both sides of every pair, from one forward pass."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from automixalign.models.rope import depends_on_length
from automixalign.scoring.logps import attention
from automixalign.scoring.logps.batch import PairBatch, PairIds

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

PACKED = frozenset(
    {"gemma", "glm", "granite", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3", "starcoder2"}
)
"""Architectures (`model_type`) whose tokens meet in attention only. Tests compare packed and padded."""


def can_pack(config: "PreTrainedConfig") -> bool:
    """Whether pairs can be packed: every layer attends to all tokens before a token, whatever the length."""
    kinds = getattr(config, "layer_types", None)
    everywhere = set(kinds) == {"full_attention"} if kinds else getattr(config, "sliding_window", None) is None
    together = config.model_type in PACKED and everywhere and not depends_on_length(config)
    return together and not getattr(config, "attention_dropout", 0.0)


def batch_of(pairs: Sequence[PairIds], packed: bool) -> PairBatch:
    """Make the batch of a forward pass."""
    return PairBatch.packed(pairs) if packed else PairBatch.padded(pairs)


@contextmanager
def packing(model: "PreTrainedModel") -> Iterator[bool]:
    """Make a model accept packed pairs, and only these, in the context; yield False if it cannot."""
    if not can_pack(model.config):
        yield False
        return
    before = model.config._attn_implementation
    model.set_attn_implementation(attention.NAME)
    try:
        yield True
    finally:
        model.set_attn_implementation(before)


def prepare_head(model: "PreTrainedModel", device: torch.device) -> bool:
    """On CUDA, add TRL's fused head to a model: it never stores all logits at once.

    Returns:
        Whether the model has this head. On the CPU it is slow.
    """
    if device.type != "cuda":
        return False
    from trl.trainer.utils import add_fused_lm_head  # importing trl takes seconds

    add_fused_lm_head(model)
    return True


def side_logps(model: Any, batch: PairBatch, fused: bool = False) -> Tensor:
    """Log-probabilities of the completions.

    Args:
        model: a causal language model; in the context of `packing` if the batch is packed.
        batch: the pairs.
        fused: whether `prepare_head` has given the model TRL's fused head.

    Returns:
        Chosen and rejected, in nats, summed over the tokens, shape (pairs, 2).
    """
    options: dict[str, Any] = {**batch.inputs, "use_cache": False}
    if batch.trees:
        options["trees"] = batch.trees
    if fused:
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
