"""The trained parameters of a policy and their optimiser's state in safetensors files, by their numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

from automixalign.storage import files
from automixalign.system.errors import TrainingError

_WEIGHT = "weight"

Tensors = Mapping[str, torch.Tensor]


def numbered(tensors: Sequence[torch.Tensor]) -> Tensors:
    """Tensors by their numbers."""
    return {str(index): tensor.detach() for index, tensor in enumerate(tensors)}


def save(tensors: Tensors, file: Path) -> None:
    """Write tensors; the file appears complete."""
    with files.replacing(file) as new:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, new)


@torch.no_grad()
def load_into(tensors: Sequence[torch.Tensor], file: Path) -> None:
    """Set tensors to those of their numbers in a file.

    Raises:
        TrainingError: the file is missing, damaged, or of other tensors.
    """
    try:
        saved = load_file(file)
        torch._foreach_copy_(list(tensors), [saved[str(index)] for index in range(len(tensors))])
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:  # the last two: other tensors
        raise _unreadable(file, error) from error


def trained_state(optimizer: torch.optim.Optimizer) -> Tensors:
    """The weights and the optimiser's state, as far as this process holds them: under FSDP, its shards.

    Frozen weights are not among them; they are those of the model that the training starts from.
    """
    tensors = {f"{index}.{_WEIGHT}": weight for index, weight in enumerate(_weights(optimizer))}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"{index}.{name}": value for name, value in values.items()}
    return {name: _local(tensor.detach()) for name, tensor in tensors.items()}


@torch.no_grad()
def load_trained_state(optimizer: torch.optim.Optimizer, file: Path, groups: list[dict[str, Any]]) -> None:
    """Set the weights and the optimiser's state to a file of `trained_state`.

    Args:
        optimizer: of the same parameters, divided among as many processes.
        file: what this process wrote.
        groups: the optimiser's `param_groups` in its state dict.

    Raises:
        TrainingError: the file is missing, damaged, or of other parameters.
    """
    weights = _weights(optimizer)
    state: dict[int, dict[str, torch.Tensor]] = {}
    try:
        with safe_open(file, "pt") as saved:
            for number, weight in enumerate(weights):
                _local(weight.detach()).copy_(saved.get_tensor(f"{number}.{_WEIGHT}"))
            for name in saved.keys():  # noqa: SIM118 - it is no mapping
                number, _, key = name.partition(".")
                if key != _WEIGHT:
                    value = _divided_like(weights[int(number)], saved.get_tensor(name))
                    state.setdefault(int(number), {})[key] = value
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    except (OSError, SafetensorError, IndexError, ValueError, RuntimeError) as error:
        raise _unreadable(file, error) from error


def _weights(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _divided_like(weight: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A shard of a value as part of the whole, if its weight is divided and the value has its shape."""
    if not isinstance(weight, DTensor) or not value.shape:
        return value
    return DTensor.from_local(
        value.to(weight.device),
        weight.device_mesh,
        weight.placements,
        shape=weight.shape,
        stride=weight.stride(),
    )


def _unreadable(file: Path, error: Exception) -> TrainingError:
    return TrainingError(f"{file.parent} cannot be read: {file.name}: {error}; remove it, and start again")
