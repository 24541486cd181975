"""Write a full model: a folder that needs nothing else, whatever loads it.

It is what `load.load_model` scores: an adapter is folded into its base in fp32, and every weight has the dtype
of the base model's source.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from automixalign.models import base_address
from automixalign.models.load import fold_adapter, load_tokenizer, stored_dtypes
from automixalign.models.safety import check_full_model, is_adapter
from automixalign.storage import files

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def write_full_model(model: Path, base_model: Path, output: Path) -> None:
    """Write a model of a run as one that loads from anywhere.

    The folder has the weights in safetensors, the configurations of model and generation, the tokenizer and the
    chat template.

    Args:
        model: its folder: a full model, or a LoRA adapter.
        base_model: the reference model, under an adapter.
        output: the new folder. It appears complete or not at all, and replaces an existing one.

    Raises:
        ModelError: a folder holds no model, or the adapter is one of another base.
    """
    with files.replacing(output) as folder:
        if is_adapter(model):
            save_full_model(fold_adapter(model, base_model), base_model, folder)
            load_tokenizer(base_model).save_pretrained(folder)
        else:
            check_full_model(model)
            shutil.copytree(model, folder, ignore=shutil.ignore_patterns(base_address.FILE))


def save_full_model(
    model: "PreTrainedModel",
    base_model: Path,
    folder: Path,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Save weights and configurations; each weight in the dtype that it has in the base model.

    Args:
        model: in fp32.
        base_model: the reference model.
        folder: the folder to write.
        state_dict: the weights, if the model itself does not hold them.
    """
    dtypes, tied = stored_dtypes(base_model), model.all_tied_weights_keys
    weights: dict[str, torch.Tensor] = {}
    rounded: dict[str, torch.Tensor] = {}  # tied weights are one tensor; FSDP gathers one for each name
    for name, weight in (state_dict or model.state_dict()).items():
        weights[name] = rounded.setdefault(tied.get(name, name), weight.to(dtypes[name]))
    model.save_pretrained(folder, state_dict=weights)
    model.config.dtype = next(iter(weights.values())).dtype
    model.config.save_pretrained(folder)
