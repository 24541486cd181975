"""The models that go into a merge, a tensor at a time: none is ever copied, or in memory, as a whole.

mergekit asks a loader for each tensor of a model. Its own keeps the file open, and with it every page that was
ever read; these let go of it after some megabytes. A LoRA adapter is added to its base on the way, with
the values that peft's `merge_and_unload` gives, so that the folded model never stands on disk.
"""

from pathlib import Path
from typing import Any

import torch
from mergekit.io import LazyTensorLoader, ShardedTensorIndex
from peft import get_peft_model_state_dict
from peft.tuners import lora
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel

from automixalign.models import safety
from automixalign.models.load import load_adapter, load_config, read_full_model

KEPT = 16 << 20
"""Bytes of a model that may stay in memory although nobody needs them."""
_ADAPTER = "default"
"""What peft calls an adapter that was given no name."""
_PREFIX = "base_model.model."
"""Of a module's name in an adapter's file."""


class Loader(LazyTensorLoader):  # type: ignore[misc]  # mergekit ships no types
    """The tensors of a full model."""

    def __init__(self, folder: Path) -> None:
        super().__init__(ShardedTensorIndex.from_disk(str(folder)))
        self.read = 0

    def get_tensor(self, key: str, *args: Any, **kwargs: Any) -> torch.Tensor | None:
        """See mergekit; once `KEPT` bytes of a file have been read, only what still lives of them stays."""
        tensor: torch.Tensor | None = super().get_tensor(key, *args, **kwargs)
        self.read += 0 if tensor is None else tensor.nbytes
        if self.read >= KEPT:  # not each time: to open a file is to read the names of all of its tensors
            self.flush()
            self.read = 0
        return tensor


class _FoldingLoader(Loader):
    """The tensors of a full model, of which those in `layers` have a LoRA adapter added, in `dtype`."""

    def __init__(self, base: Path, adapter: Path, layers: dict[str, lora.Linear], dtype: torch.dtype) -> None:
        super().__init__(base)
        self.adapter = adapter / safety.ADAPTER_WEIGHTS
        self.layers = layers
        self.dtype = dtype

    def get_tensor(self, key: str, *args: Any, **kwargs: Any) -> torch.Tensor | None:
        tensor = super().get_tensor(key, *args, **kwargs)
        if tensor is None or key not in self.layers:
            return tensor
        layer, name = self.layers[key], _PREFIX + key.removesuffix(".weight")
        with safe_open(self.adapter, framework="pt") as stored:
            # Copies, for what a product rounds to may depend on where in memory its factors begin.
            a, b = (stored.get_tensor(f"{name}.lora_{side}.weight").to(self.dtype, copy=True) for side in "AB")
        delta = (b @ a).T if layer.fan_in_fan_out else b @ a
        folded: torch.Tensor = tensor.to(self.dtype) + delta * layer.scaling[_ADAPTER]
        return folded


def skeleton(folder: Path) -> PreTrainedModel:
    """The model that a folder's configuration describes, without weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(load_config(folder))


def fold(base: Path, adapter: Path, folder: Path, dtype: torch.dtype) -> Loader:
    """The base with an adapter added to its weights in `dtype`, as a model in `folder`.

    `folder` becomes a link to the base, and what is added comes from the loader alone. An adapter that changes
    more than single matrices of the base, such as embeddings, tied weights or biases, is folded as a whole
    and written there.

    Raises:
        ModelError, ValueError: it is no adapter of this base.
    """
    adapted = _adapted(skeleton(base), adapter, low_cpu_mem_usage=True)
    layers = _layers(adapted, adapter)
    if layers is not None and layers.keys() <= Loader(base).index.tensor_paths.keys():
        folder.symlink_to(base.resolve(), target_is_directory=True)
        return _FoldingLoader(folder, adapter, layers, dtype)
    model = _adapted(read_full_model(base, dtype=dtype), adapter)
    model.merge_and_unload().save_pretrained(folder)
    return Loader(folder)


def _adapted(model: PreTrainedModel, adapter: Path, **options: Any) -> Any:
    """`model` with the adapter's layers, every stored one of which has found its place."""
    model = load_adapter(model, adapter, **options)
    stored = {name for name in _stored(adapter) if ".lora_" in name}
    loaded = get_peft_model_state_dict(model, save_embedding_layers=False)
    # peft leaves out silently what the base has no place for, such as further layers.
    odd = sorted(stored ^ {name for name in loaded if ".lora_" in name})
    if odd:
        raise ValueError(f"{len(odd)} weights fit no module, or are missing: {odd[0]} ...")
    return model


def _stored(adapter: Path) -> list[str]:
    with safe_open(adapter / safety.ADAPTER_WEIGHTS, framework="pt") as tensors:
        return list(tensors.keys())


def _layers(adapted: Any, adapter: Path) -> dict[str, lora.Linear] | None:
    """The adapter's layers by the weight that each changes; None if there is more to it than A and B."""
    model = adapted.get_base_model()
    modules = {name: module for name, module in model.named_modules() if isinstance(module, lora.LoraLayer)}
    tied = model.all_tied_weights_keys
    for name, layer in modules.items():
        if type(layer) is not lora.Linear or layer.lora_variant or f"{name}.weight" in tied:
            return None
    sides = {f"{_PREFIX}{name}.lora_{side}.weight" for name in modules for side in "AB"}
    if sides != set(_stored(adapter)):
        return None
    return {f"{name}.weight": layer for name, layer in modules.items()}
