"""FlexAttention (arXiv 2412.05496) for packed pairs on GPUs: the trees are the block mask of a fused kernel."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface
from transformers.integrations.flex_attention import flex_attention_forward

from automixalign.scoring.logps.attention import Trees, in_autocast

NAME = "automixalign_flex_trees"


def block_mask(trees: Sequence[Trees], device: torch.device) -> BlockMask:
    """The blocks of the attention matrix that hold a token's prompt or its own branch, for all layers."""
    lengths: list[int] = []
    stems: list[int] = []
    for stem, *branches in (tree for group in trees for tree in group.trees):
        stems += [len(lengths)] * (1 + len(branches))
        lengths += [stem, *branches]
    each = torch.tensor(lengths)
    part = torch.arange(len(lengths)).repeat_interleave(each).to(device)
    prompt = torch.tensor(stems).repeat_interleave(each).to(device)

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & ((part[key] == part[query]) | (part[key] == prompt[query]))

    return create_block_mask(sees, None, None, len(part), len(part), device=device)


def _attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, **options: Any
) -> tuple[Tensor, Tensor | None]:
    output: tuple[Tensor, Tensor | None] = flex_attention_forward(
        module, *in_autocast(query, key, value), mask, **options
    )
    return output


AttentionInterface.register(NAME, _attention)
