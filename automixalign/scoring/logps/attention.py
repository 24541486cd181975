"""Attention of packed pairs: all pairs lie in one row, and each is a tree of a prompt with two branches.

A token sees the prompt before it and what comes before it in its own branch; pairs do not see each other. It is
registered with transformers under `NAME`, so every architecture that looks its attention up there can use it
(https://huggingface.co/docs/transformers/attention_interface).
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "automixalign_trees"

_DENSE = 1024
"""Tokens of a tree from which on its attention weights are not kept for the backward pass."""
_SMALL = 128
"""Tokens that are multiplied together even where they do not see each other."""


class Trees:
    """Which tokens of some pairs, one after the other, see which: of each, a prompt, then its branches.

    Args:
        trees: for each pair the tokens of its prompt, which all branches see, then the tokens of each branch.
    """

    def __init__(self, trees: Sequence[Sequence[int]]) -> None:
        self.trees = trees
        self.size = sum(map(sum, trees))

    @cached_property
    def sees(self) -> Tensor:
        """Whether a token (row) sees another (column), boolean, shape (size, size)."""
        sees = torch.ones(self.size, self.size, dtype=torch.bool).tril()
        start = 0
        for stem, *branches in self.trees:
            sees[start:, :start] = False
            start += stem
            for branch in branches:
                sees[start + branch :, start : start + branch] = False
                start += branch
        return sees

    @cached_property
    def bias(self) -> Tensor:
        """The same to be added to the scores: 0 or -inf, fp32."""
        return torch.zeros(self.sees.shape).masked_fill_(~self.sees, -torch.inf)


def grouped(trees: Sequence[Sequence[int]]) -> list[Trees]:
    """Small trees together: a product of so few tokens costs its call more than its work."""
    groups: list[list[Sequence[int]]] = []
    tokens = _SMALL
    for tree in trees:
        if tokens + sum(tree) > _SMALL:
            groups.append([])
            tokens = 0
        groups[-1].append(tree)
        tokens += sum(tree)
    return [Trees(group) for group in groups]


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    trees: Sequence[Trees],
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each of the trees that follow each other in the row.

    Args:
        query: shape (1, heads, tokens, width).
        key: shape (1, key heads, tokens, width), as is `value`.
        trees: of all tokens, in their order, as `grouped`.
        scaling: of the scores; by default 1 / sqrt(width).

    Returns:
        Shape (1, tokens, heads, width), as transformers has it.
    """
    if dropout or attention_mask is not None:
        raise NotImplementedError("packed pairs have neither attention dropout nor a mask of their own")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    device = query.device.type
    if torch.is_autocast_enabled(device):  # a rotation may have given back fp32
        dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    # The CPU's own kernel runs at the speed of fp32 products in any precision, and slowly in its backward pass.
    if device == "cpu" and all(tree.size < _DENSE for tree in trees):
        return _DenseTrees.apply(query, key, value, trees, scale), None  # type: ignore[no-untyped-call]
    sizes = [tree.size for tree in trees]
    parts = (torch.split(each, sizes, 2) for each in (query, key, value))
    found = [
        scaled_dot_product_attention(q, k, v, tree.sees.to(q.device), scale=scale, enable_gqa=True)
        for q, k, v, tree in zip(*parts, trees, strict=True)
    ]
    return torch.cat(found, 2).transpose(1, 2), None


class _DenseTrees(torch.autograd.Function):
    """Scores and softmax in fp32, products with values and gradients in the precision of the inputs."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, trees: Sequence[Trees], scale: float
    ) -> Tensor:
        heads, groups = query.shape[1], query.shape[1] // key.shape[1]
        output = query.new_empty(1, query.shape[2], heads, value.shape[-1])
        weights, start = [], 0
        with torch.autocast("cpu", enabled=False):
            for tree in trees:
                here = slice(start, start + tree.size)
                q, k = _stacked(query[0, :, here], groups).float(), key[0, :, here].float()
                scores = torch.baddbmm(tree.bias.repeat(1, groups, 1), q, k.mT, alpha=scale)
                weights.append(torch.softmax(scores, -1).to(query.dtype))
                found = torch.bmm(weights[-1], value[0, :, here])
                output[0, here] = found.view(heads, tree.size, -1).transpose(0, 1)
                start += tree.size
        ctx.save_for_backward(query, key, value, *weights)
        ctx.trees, ctx.scale, ctx.groups = trees, scale, groups
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *weights = ctx.saved_tensors
        inputs = (query, key, value)
        found = [each.new_empty(each.shape[2], each.shape[1], each.shape[3]) for each in inputs]
        start = 0
        for tree, weight in zip(ctx.trees, weights, strict=True):
            here = slice(start, start + tree.size)
            q, k, v = _stacked(query[0, :, here], ctx.groups), key[0, :, here], value[0, :, here]
            out = _stacked(gradient[0, here].transpose(0, 1), ctx.groups)
            of_weights = torch.bmm(out, v.mT)
            of_scores = torch._softmax_backward_data(of_weights, weight, -1, weight.dtype).mul_(ctx.scale)
            of_query = torch.bmm(of_scores, k).view(query.shape[1], tree.size, -1)
            parts = (of_query, torch.bmm(of_scores.mT, q), torch.bmm(weight.mT, out))
            for whole, part in zip(found, parts, strict=True):
                whole[here] = part.transpose(0, 1)
            start += tree.size
        return *(each.transpose(0, 1)[None] for each in found), None, None


def _stacked(heads: Tensor, groups: int) -> Tensor:
    """The queries that share a key head, one below the other, (key heads, groups * tokens, width)."""
    return heads.reshape(heads.shape[0] // groups, -1, heads.shape[-1])


AttentionInterface.register(NAME, tree_attention)
