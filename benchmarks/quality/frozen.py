"""What a base model's first layers give of a pair is computed once, where only layers above them are trained.

Every training, evaluation and merge of a setup, on every seed, runs the same pairs through the same frozen
layers: a process remembers what they gave, and keeps it in a folder for the others and for those to come.
The numbers are those of the library without this, but for the order of sums
(`tests/benchmarks/test_quality_frozen.py`).
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

from automixalign.models import load as models
from automixalign.scoring.logps.attention import NAME, Trees, grouped
from automixalign.storage import files

_MEMORY: "dict[int, _Remembering]" = {}
"""How many layers -> what this process knows of them: a pair of 200 tokens is half a megabyte."""

_GIVES = "hidden"


@contextmanager
def remembered(layers: int, kept: Path) -> Iterator[None]:
    """Models that the library loads meanwhile share what their first so many layers give; 0 changes nothing.

    A model whose first layers have other weights than the first model's stays as it is.

    Args:
        layers: how many.
        kept: folder for it, a file a pair, below a name that says of which layers it is.
    """
    if not layers:
        yield
        return
    load, first = models.read_full_model, None

    def loading(folder: Path, **options: Any) -> Any:
        nonlocal first
        model: Any = load(folder, **options)
        here = model.model.layers[:layers]
        if first is None:
            first = _MEMORY.get(layers)
            if first is None or not first.has_the_weights_of(here):
                first = _MEMORY[layers] = _Remembering(here, model.config, kept)
        if first.has_the_weights_of(here):
            model.model.layers[0] = first
            for place in range(1, layers):
                model.model.layers[place] = _Passing()
        return model

    with mock.patch.object(models, "read_full_model", loading):
        yield


class _Remembering(nn.Module):
    """Some layers, in the place of the first of them."""

    def __init__(self, layers: nn.ModuleList, config: Any, kept: Path) -> None:
        super().__init__()
        self.layers = layers.requires_grad_(False)
        # `packing` changes the configuration of one model, and several share these layers.
        self.config = copy.deepcopy(config)
        self.attention = config._attn_implementation
        for layer in layers:
            layer.self_attn.config = self.config
        weights = hashlib.blake2b(digest_size=10)
        for tensor in layers.state_dict().values():
            weights.update(tensor.numpy().tobytes())
        self.kept = kept / weights.hexdigest()
        self.known: dict[str, Tensor] = {}

    def has_the_weights_of(self, layers: nn.ModuleList) -> bool:
        ours, theirs = self.layers.state_dict(), layers.state_dict()
        return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)

    def forward(
        self,
        hidden: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        trees: Sequence[Trees] = (),
        **options: Any,
    ) -> Tensor:
        """As the layers do, shape (1, tokens, width); of packed pairs each is known after its first time."""
        self.config._attn_implementation = NAME if trees else self.attention
        # What is known must serve trainings, too, and what inference mode makes does not.
        with torch.inference_mode(False), torch.no_grad():
            if not trees:
                return self._through(hidden, position_embeddings, **options)
            found, start = [], 0
            for tree in (tree for group in trees for tree in group.trees):
                here = slice(start, start + sum(tree))
                cos, sin = (each[:, here] for each in position_embeddings)
                found.append(self._of_a_pair(hidden[:, here], (cos, sin), tree, **options))
                start = here.stop
            return torch.cat(found, 1)

    def _of_a_pair(
        self, pair: Tensor, position_embeddings: tuple[Tensor, Tensor], tree: Sequence[int], **options: Any
    ) -> Tensor:
        key = hashlib.blake2b(repr(tuple(tree)).encode() + pair.numpy().tobytes(), digest_size=20).hexdigest()
        if key not in self.known:
            file = self.kept / f"{key}.safetensors"
            if not file.exists():
                gives = self._through(pair, position_embeddings, trees=grouped([tree]), **options)
                with files.replacing(file) as new:
                    save_file({_GIVES: gives}, new)
            self.known[key] = load_file(file)[_GIVES]
        return self.known[key]

    def _through(self, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor], **options: Any) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden, position_embeddings=position_embeddings, **options)
        return hidden


class _Passing(nn.Module):
    def forward(self, hidden: Tensor, **_: Any) -> Tensor:
        return hidden
