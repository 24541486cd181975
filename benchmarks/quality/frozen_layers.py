"""Compute the output of a base model's frozen layers once for each pair.

All trainings, evaluations and merges of a setup run the same pairs through the same frozen layers. A process
keeps their outputs in memory, and in a folder for other processes. The numbers differ from those without the
cache only by the order of sums (`tests/benchmarks/test_quality_frozen_layers.py`).
"""

import copy
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from automixalign.models import load
from automixalign.scoring.logps.attention import NAME, Trees, grouped
from automixalign.storage import files

_CACHES: "dict[int, _CachedLayers]" = {}
"""Number of layers -> their outputs in this process; a pair of 200 tokens takes half a megabyte."""
_OUTPUT = "hidden"


@contextmanager
def cached(layers: int, folder: Path) -> Iterator[None]:
    """Let all models that are loaded in this context share the outputs of their first layers.

    A model whose first layers differ from those of the first model does not share them.

    Args:
        layers: how many layers are frozen; 0 changes nothing.
        folder: holds a file for each pair, in a folder named by the digest of the layers.
    """
    if not layers:
        yield
        return
    read, shared = load.read_full_model, None

    def read_and_share(path: Path, **options: Any) -> Any:
        nonlocal shared
        model: Any = read(path, **options)
        if model.device.type == "meta":
            return model
        frozen = model.model.layers[:layers]
        if shared is None:
            shared = _CACHES.get(layers)
            if shared is None or not shared.has_weights_of(frozen):
                shared = _CACHES[layers] = _CachedLayers(frozen, model.config, folder)
        if shared.has_weights_of(frozen):
            model.model.layers[0] = shared
            for index in range(1, layers):
                model.model.layers[index] = _Identity()
        return model

    with mock.patch.object(load, "read_full_model", read_and_share):
        yield


class _CachedLayers(nn.Module):
    """Several layers that replace the first of them."""

    def __init__(self, layers: nn.ModuleList, config: Any, folder: Path) -> None:
        super().__init__()
        self.layers = layers.requires_grad_(False)
        # Several models share these layers, and `attending` changes the configuration of one model.
        self.config = copy.deepcopy(config)
        self.attention = config._attn_implementation
        for layer in layers:
            layer.self_attn.config = self.config
        digest = hashlib.blake2b(digest_size=10)
        for tensor in layers.state_dict().values():
            digest.update(tensor.numpy().tobytes())
        self.folder = folder / digest.hexdigest()
        self.outputs: dict[str, Tensor] = {}

    def has_weights_of(self, layers: nn.ModuleList) -> bool:
        own, other = self.layers.state_dict(), layers.state_dict()
        return own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own)

    def forward(
        self,
        hidden: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        trees: Sequence[Trees] = (),
        **options: Any,
    ) -> Tensor:
        """The output of the layers, shape (1, tokens, width); only that of packed pairs is cached."""
        self.config._attn_implementation = NAME if trees else self.attention
        # Trainings use the outputs, too, and cannot use tensors of inference mode.
        with torch.inference_mode(False), torch.no_grad():
            if not trees:
                return self._run(hidden, position_embeddings, **options)
            outputs, start = [], 0
            for tree in (tree for group in trees for tree in group.trees):
                tokens = slice(start, start + sum(tree))
                cos, sin = (each[:, tokens] for each in position_embeddings)
                outputs.append(self._run_pair(hidden[:, tokens], (cos, sin), tree, **options))
                start = tokens.stop
            return torch.cat(outputs, 1)

    def _run_pair(
        self, pair: Tensor, position_embeddings: tuple[Tensor, Tensor], tree: Sequence[int], **options: Any
    ) -> Tensor:
        key = hashlib.blake2b(repr(tuple(tree)).encode() + pair.numpy().tobytes(), digest_size=20).hexdigest()
        if key not in self.outputs:
            file = self.folder / f"{key}.safetensors"
            if not file.exists():
                output = self._run(pair, position_embeddings, trees=grouped([tree]), **options)
                with files.replacing(file) as new:
                    save_file({_OUTPUT: output}, new)
            self.outputs[key] = load_file(file)[_OUTPUT]
        return self.outputs[key]

    def _run(self, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor], **options: Any) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden, position_embeddings=position_embeddings, **options)
        return hidden


class _Identity(nn.Module):
    def forward(self, hidden: Tensor, **_: Any) -> Tensor:
        return hidden
