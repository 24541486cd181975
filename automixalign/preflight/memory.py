"""How many bytes the weights of a policy take, by its numbers of parameters."""

from typing import TYPE_CHECKING

from automixalign.config.settings import Loading

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRAINED = 4
"""Bytes of a trained weight, of its gradient, and of each of AdamW's two moments: fp32."""
_SOURCE = 2
"""Bytes of a frozen weight in its source's dtype, which is bf16 or fp16."""
_QUANTIZED = {"4bit": (4 + 8 / 64 + 32 / (64 * 256)) / 8, "8bit": 1.0}
"""Bytes of a quantised weight. nf4 has a scale of 8 bits for 64 weights, and one of 32 bits for 256 scales."""


def weights_bytes(base: int, linear: int, adapter: int, loading: Loading, bf16: bool) -> int:
    """The bytes of the weights in a training.

    Args:
        base: parameters of the model without an adapter.
        linear: those of its linear layers but the head, which `quantize` changes.
        adapter: parameters of the adapter; 0 without one.
        loading: how the model is held.
        bf16: whether the forward pass is in bf16.
    """
    dense = _SOURCE if bf16 and loading.dtype == "source" else TRAINED
    bits = _QUANTIZED[loading.quantize] if loading.quantize else dense
    return round(linear * bits + (base - linear) * dense + TRAINED * adapter)


def linear_parameters(model: "PreTrainedModel") -> int:
    """The weights that `quantize` changes: of all linear layers but the head."""
    from torch.nn import Linear

    head = model.get_output_embeddings()
    return sum(
        module.weight.numel() for module in model.modules() if isinstance(module, Linear) and module is not head
    )
