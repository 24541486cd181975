"""The models that go into a merge, read one tensor at a time. No model is copied or in memory as a whole.

mergekit asks a loader for each tensor of a model. mergekit's own loader keeps the file open, and with it every
page that it read; these loaders close it after some megabytes. They add a LoRA adapter to its base on the way,
with the values of peft's `merge_and_unload`, so the folded model is never written to disk.
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

UNUSED_BYTES = 16 << 20
"""Bytes of a file that may stay in memory after use."""
_ADAPTER = "default"
"""peft's name for an adapter without a name."""
_PREFIX = "base_model.model."
"""Prefix of a module's name in an adapter's file."""


class Loader(LazyTensorLoader):  # type: ignore[misc]  # mergekit ships no types
    """The tensors of a full model."""

    def __init__(self, folder: Path) -> None:
        super().__init__(ShardedTensorIndex.from_disk(str(folder)))
        self.bytes_read = 0

    def get_tensor(self, key: str, *args: Any, **kwargs: Any) -> torch.Tensor | None:
        """Read a tensor; close its file after `UNUSED_BYTES`, so that only tensors in use stay in memory."""
        tensor: torch.Tensor | None = super().get_tensor(key, *args, **kwargs)
        self.bytes_read += 0 if tensor is None else tensor.nbytes
        if self.bytes_read >= UNUSED_BYTES:  # not each time, because opening a file reads all tensor names
            self.flush()
            self.bytes_read = 0
        return tensor


class _FoldingLoader(Loader):
    """The tensors of a full model. Those in `layers` have a LoRA adapter added, in `dtype`."""

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
            # Copies: the rounding of a product may depend on the memory alignment of its factors.
            a, b = (stored.get_tensor(f"{name}.lora_{side}.weight").to(self.dtype, copy=True) for side in "AB")
        delta = (b @ a).T if layer.fan_in_fan_out else b @ a
        folded: torch.Tensor = tensor.to(self.dtype) + delta * layer.scaling[_ADAPTER]
        return folded


def skeleton(folder: Path) -> PreTrainedModel:
    """The model that a folder's configuration describes, without weights (on the device "meta")."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(load_config(folder))


def fold(base: Path, adapter: Path, folder: Path, dtype: torch.dtype) -> Loader:
    """Make a model of a base and an adapter.

    Usually `folder` becomes a link to the base, and the loader adds the adapter. Some adapters change more than
    single matrices: embeddings, tied weights or biases. Those are folded as a whole and written to `folder`.

    Args:
        base: folder of a full model.
        adapter: folder of a LoRA adapter of it.
        folder: the path of the new model.
        dtype: dtype of the sum.

    Returns:
        A loader of the new model's tensors.

    Raises:
        ModelError, ValueError: the adapter does not fit the base.
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
    """`model` with the adapter's layers.

    Raises:
        ValueError: some weights of the adapter fit no module of the model.
    """
    model = load_adapter(model, adapter, **options)
    stored = {name for name in _tensor_names(adapter) if ".lora_" in name}
    loaded = get_peft_model_state_dict(model, save_embedding_layers=False)
    # peft silently ignores weights without a module in the base, such as those of further layers.
    unmatched = sorted(stored ^ {name for name in loaded if ".lora_" in name})
    if unmatched:
        raise ValueError(f"{len(unmatched)} weights fit no module, or are missing: {unmatched[0]} ...")
    return model


def _tensor_names(adapter: Path) -> list[str]:
    with safe_open(adapter / safety.ADAPTER_WEIGHTS, framework="pt") as tensors:
        return list(tensors.keys())


def _layers(adapted: Any, adapter: Path) -> dict[str, lora.Linear] | None:
    """The adapter's layers by the weight that each changes; None if it holds more than A and B matrices."""
    model = adapted.get_base_model()
    modules = {name: module for name, module in model.named_modules() if isinstance(module, lora.LoraLayer)}
    tied = model.all_tied_weights_keys
    for name, layer in modules.items():
        if type(layer) is not lora.Linear or layer.lora_variant or f"{name}.weight" in tied:
            return None
    sides = {f"{_PREFIX}{name}.lora_{side}.weight" for name in modules for side in "AB"}
    if sides != set(_tensor_names(adapter)):
        return None
    return {f"{name}.weight": layer for name, layer in modules.items()}
