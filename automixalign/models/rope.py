"""Rotary positions whose frequencies depend on the length of the row: each row gets those of its own length.

transformers takes the frequencies of all rows from the longest one, and `dynamic` ones also from earlier
batches. The numbers of a row would then depend on the rows beside it and before it.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_BY_LENGTH = {"dynamic", "longrope"}


def depends_on_length(config: "PreTrainedConfig") -> bool:
    """Whether the positions of a model, in any layer, depend on the length of the row."""
    parameters = getattr(config.get_text_config(), "rope_parameters", None) or {}
    layers = [part for part in parameters.values() if isinstance(part, dict)] or [parameters]
    return any(layer.get("rope_type") in _BY_LENGTH for layer in layers)


def treat_rows_alone(model: "PreTrainedModel") -> None:
    """Let a model give each row of a batch the numbers that it has alone; most models do so anyway."""
    if not depends_on_length(model.config):
        return
    for parent in model.modules():
        for rotary in parent.children():
            if hasattr(rotary, "rope_type") and hasattr(rotary, "max_seq_len_cached"):
                rotary.forward = _RowByRow(rotary)
                parent.register_forward_pre_hook(_add_positions, with_kwargs=True)


class _RowByRow:
    """The forward pass of a rotary embedding, one row after the other."""

    def __init__(self, rotary: Any) -> None:
        self.rotary = rotary
        self.forward = rotary.forward

    def __call__(self, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        rows = []
        for row in position_ids:
            self._forget_lengths()
            rows.append(self.forward(x, row[None], *args, **kwargs))
        return tuple(torch.cat(part) for part in zip(*rows, strict=True))

    def _forget_lengths(self) -> None:
        """Return to the frequencies of a short row; `dynamic` ones stay at the longest row so far."""
        for name in [name for name, _ in self.rotary.named_buffers() if name.endswith("original_inv_freq")]:
            prefix, original = name.removesuffix("original_inv_freq"), getattr(self.rotary, name)
            self.rotary.register_buffer(f"{prefix}inv_freq", original.clone(), persistent=False)
            setattr(self.rotary, f"{prefix}max_seq_len_cached", self.rotary.original_max_seq_len)


def _add_positions(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Number the tokens of each row. Padding continues no row: it has the position of the last token."""
    mask = kwargs.get("attention_mask")
    if kwargs.get("position_ids") is None and isinstance(mask, Tensor) and mask.ndim == 2:
        kwargs["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)
    return args, kwargs
