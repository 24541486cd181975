"""Start a model that FSDP will divide: only the first process holds its weights, in the CPU's memory.

transformers has an option for this (`FSDP_CPU_RAM_EFFICIENT_LOADING`), but its version 5.23 reads the weights
in every process nevertheless. accelerate sends the weights to the other processes when it divides the model.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import distributed

from automixalign.models.load import device, read_full_model, uses_bf16

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def read_for_fsdp(folder: Path, precision: str) -> "PreTrainedModel":
    """Read a full model in the first process; in the others its parameters are on the meta device.

    Args:
        folder: the full model.
        precision: of the forward passes. For bf16, the weights keep the dtype of the source.

    Raises:
        ModelError: the folder holds no full model in safetensors.
    """
    device_map = "meta" if distributed.get_rank() else None
    dtype = "auto" if uses_bf16(precision) else torch.float32
    return read_full_model(folder, dtype=dtype, device_map=device_map)


def replace_meta(model: "PreTrainedModel") -> None:
    """Give parameters on the meta device unwritten memory, and buffers their values.

    accelerate tells parameters apart by their addresses. Memory takes space when it is first written,
    and nothing writes this: accelerate divides the model on the meta device again.
    """
    if distributed.get_rank() > 0:
        model.to_empty(device="cpu")
        model.tie_weights()
    for buffer in model.buffers():  # accelerate sends parameters only
        value = buffer.to(device())
        distributed.broadcast(value, src=0)
        buffer.copy_(value)
