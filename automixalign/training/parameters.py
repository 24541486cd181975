"""The trained parameters of a policy in a safetensors file, by their numbers."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from automixalign.system.errors import TrainingError


def save(tensors: Sequence[torch.Tensor], file: Path) -> None:
    """Write tensors, in their order."""
    save_file({str(index): tensor.detach().contiguous() for index, tensor in enumerate(tensors)}, file)


@torch.no_grad()
def load_into(tensors: Sequence[torch.Tensor], file: Path) -> None:
    """Set tensors to what `save` wrote.

    Raises:
        TrainingError: the file is missing, damaged, or of other tensors.
    """
    try:
        saved = load_file(file)
        torch._foreach_copy_(list(tensors), [saved[str(index)] for index in range(len(tensors))])
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:  # the last two: other tensors
        raise TrainingError(
            f"{file.parent} cannot be read: {file.name}: {error}; remove it, and start again"
        ) from error
