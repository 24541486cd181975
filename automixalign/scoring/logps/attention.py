"""Attention for packed pairs: one row holds all pairs, and each pair is a tree of a prompt and two branches.

A token attends to the tokens before it in the prompt and in its own branch, and to no other pair. Architectures
of transformers find this attention by its `NAME` (https://huggingface.co/docs/transformers/attention_interface).
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "automixalign_trees"

_MAX_DENSE_TOKENS = 1024
"""The attention weights of a larger tree are not stored for the backward pass."""
_GROUP_TOKENS = 128
"""Trees are multiplied together up to this size, although they do not attend to each other."""


class Trees:
    """Which tokens attend to which in a row of pairs; of each pair, the prompt comes first, then its branches.

    Args:
        trees: for each pair the number of tokens of its prompt, then of each branch.
    """

    def __init__(self, trees: Sequence[Sequence[int]]) -> None:
        self.trees = trees
        self.size = sum(map(sum, trees))

    @cached_property
    def sees(self) -> Tensor:
        """Whether the token of a row attends to the token of a column, boolean, shape (size, size)."""
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
        """The same as a term of the scores: 0 or -inf, fp32."""
        return torch.zeros(self.sees.shape).masked_fill_(~self.sees, -torch.inf)


def grouped(trees: Sequence[Sequence[int]]) -> list[Trees]:
    """Group small trees, because a product of few tokens takes longer to call than to compute."""
    groups: list[list[Sequence[int]]] = []
    tokens = _GROUP_TOKENS
    for tree in trees:
        if tokens + sum(tree) > _GROUP_TOKENS:
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
    """Attention within each tree of the row.

    Args:
        query: shape (1, heads, tokens, width).
        key: shape (1, key heads, tokens, width), as is `value`.
        trees: of all tokens, in their order, as `grouped`.
        scaling: factor of the scores; by default 1 / sqrt(width).

    Returns:
        The output, shape (1, tokens, heads, width), and no weights.
    """
    if dropout or attention_mask is not None:
        raise NotImplementedError("packed pairs have neither attention dropout nor a mask of their own")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, key, value = in_autocast(query, key, value)
    # On the CPU, torch's kernel takes the time of fp32 in any precision, and its backward pass is slow.
    if query.device.type == "cpu" and all(tree.size < _MAX_DENSE_TOKENS for tree in trees):
        return _DenseTrees.apply(query, key, value, trees, scale), None  # type: ignore[no-untyped-call]
    sizes = [tree.size for tree in trees]
    parts = (torch.split(each, sizes, 2) for each in (query, key, value))
    outputs = [
        scaled_dot_product_attention(q, k, v, tree.sees.to(q.device), scale=scale, enable_gqa=True)
        for q, k, v, tree in zip(*parts, trees, strict=True)
    ]
    return torch.cat(outputs, 2).transpose(1, 2), None


def in_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors in the precision of autocast, if it is enabled: rotary embeddings may have returned fp32."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(each.to(torch.get_autocast_dtype(device)) for each in tensors)


class _DenseTrees(torch.autograd.Function):
    """Scores and softmax in fp32; products with values, and gradients, in the precision of the inputs."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, trees: Sequence[Trees], scale: float
    ) -> Tensor:
        heads, groups = query.shape[1], query.shape[1] // key.shape[1]
        output = query.new_empty(1, query.shape[2], heads, value.shape[-1])
        weights, start = [], 0
        with torch.autocast("cpu", enabled=False):
            for tree in trees:
                rows = slice(start, start + tree.size)
                q, k = _stack(query[0, :, rows], groups).float(), key[0, :, rows].float()
                scores = torch.baddbmm(tree.bias.repeat(1, groups, 1), q, k.mT, alpha=scale)
                weights.append(torch.softmax(scores, -1).to(query.dtype))
                result = torch.bmm(weights[-1], value[0, :, rows])
                output[0, rows] = result.view(heads, tree.size, -1).transpose(0, 1)
                start += tree.size
        ctx.save_for_backward(query, key, value, *weights)
        ctx.trees, ctx.scale, ctx.groups = trees, scale, groups
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *weights = ctx.saved_tensors
        inputs = (query, key, value)
        gradients = [each.new_empty(each.shape[2], each.shape[1], each.shape[3]) for each in inputs]
        start = 0
        for tree, weight in zip(ctx.trees, weights, strict=True):
            rows = slice(start, start + tree.size)
            q, k, v = _stack(query[0, :, rows], ctx.groups), key[0, :, rows], value[0, :, rows]
            out = _stack(gradient[0, rows].transpose(0, 1), ctx.groups)
            of_weights = torch.bmm(out, v.mT)
            of_scores = torch._softmax_backward_data(of_weights, weight, -1, weight.dtype).mul_(ctx.scale)
            of_query = torch.bmm(of_scores, k).view(query.shape[1], tree.size, -1)
            parts = (of_query, torch.bmm(of_scores.mT, q), torch.bmm(weight.mT, out))
            for whole, part in zip(gradients, parts, strict=True):
                whole[rows] = part.transpose(0, 1)
            start += tree.size
        return *(each.transpose(0, 1)[None] for each in gradients), None, None


def _stack(heads: Tensor, groups: int) -> Tensor:
    """Stack the queries that share a key head: shape (key heads, groups * tokens, width)."""
    return heads.reshape(heads.shape[0] // groups, -1, heads.shape[-1])


AttentionInterface.register(NAME, tree_attention)
