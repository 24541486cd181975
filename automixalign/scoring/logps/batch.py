"""Pairs as the tokens of a forward pass: packed into one row without padding, or padded to the longest side.

A packed pair has its prompt once for both sides. Each branch begins with the prompt's last token, so that every
token of a branch predicts one token of its side. The last token of a side predicts nothing and is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from automixalign.scoring.logps.attention import Trees, grouped
from automixalign.scoring.logps.flex import block_mask


class PairIds(NamedTuple):
    """The token ids of a pair. The prompt has at least one."""

    prompt: Sequence[int]
    chosen: Sequence[int]
    rejected: Sequence[int]

    @property
    def size(self) -> int:
        """Number of tokens of both sides, each with the prompt."""
        return 2 * len(self.prompt) + len(self.chosen) + len(self.rejected)


@dataclass(frozen=True)
class PairBatch:
    """The pairs of a forward pass.

    Attributes:
        inputs: the model's arguments.
        rows, columns: the indices at which each token of the sides is predicted, shape (tokens of all sides,).
        targets: the tokens to predict, shape (tokens of all sides,).
        sizes: number of tokens of each side, in the order chosen, rejected, chosen, ... of `targets`.
        trees: of a packed batch.
        blocks: whether the trees become a block mask on the device, for `flex`.
        last_columns: of a padded batch, how many columns at the end hold all predictions.
    """

    inputs: dict[str, Any]
    rows: Tensor
    columns: Tensor
    targets: Tensor
    sizes: list[int]
    trees: list[Trees] = field(default_factory=list)
    blocks: bool = False
    last_columns: int = 0

    @classmethod
    def packed(cls, pairs: Sequence[PairIds], blocks: bool = False) -> Self:
        """All pairs in one row."""
        ids: list[int] = []
        positions: list[int] = []
        columns: list[int] = []
        targets: list[int] = []
        trees = []
        for prompt, *sides in pairs:
            stem = len(prompt) - 1
            ids += prompt[:-1]
            positions += range(stem)
            for side in sides:
                columns += range(len(ids), len(ids) + len(side))
                positions += range(stem, stem + len(side))
                ids += [prompt[-1], *side[:-1]]
                targets += side
            trees.append((stem, *map(len, sides)))
        sizes = [branch for _, *branches in trees for branch in branches]
        inputs = {"input_ids": torch.tensor([ids]), "position_ids": torch.tensor([positions])}
        at = torch.tensor(columns)
        return cls(
            inputs=inputs,
            rows=torch.zeros_like(at),
            columns=at,
            targets=torch.tensor(targets),
            sizes=sizes,
            trees=grouped(trees),
            blocks=blocks,
        )

    @classmethod
    def padded(cls, pairs: Sequence[PairIds], masked: bool = True) -> Self:
        """A row for each side, padded on the right.

        Args:
            pairs: the pairs.
            masked: whether the model gets an attention mask.
        """
        sides = [(pair.prompt, side) for pair in pairs for side in (pair.chosen, pair.rejected)]
        longest = max(len(prompt) + len(side) for prompt, side in sides)
        ids = torch.zeros(len(sides), longest, dtype=torch.long)
        lengths = torch.tensor([len(prompt) + len(side) for prompt, side in sides])
        predicts = torch.zeros_like(ids, dtype=torch.bool)
        for row, (prompt, side) in enumerate(sides):
            length = len(prompt) + len(side)
            ids[row, :length] = torch.tensor([*prompt, *side])
            predicts[row, len(prompt) - 1 : length - 1] = True
        rows, columns = predicts.nonzero(as_tuple=True)
        inputs = {"input_ids": ids}
        if masked:
            inputs["attention_mask"] = (torch.arange(longest) < lengths[:, None]).long()
        return cls(
            inputs=inputs,
            rows=rows,
            columns=columns,
            targets=ids[rows, columns + 1],
            sizes=[len(side) for _, side in sides],
            last_columns=longest - min(len(prompt) for prompt, _ in sides) + 1,
        )

    def to(self, device: torch.device) -> Self:
        """The batch on a device."""
        inputs: dict[str, Any] = {key: on_device(value, device) for key, value in self.inputs.items()}
        if self.blocks:
            inputs["attention_mask"] = block_mask(self.trees, device)
        rows, columns, targets = (on_device(each, device) for each in (self.rows, self.columns, self.targets))
        return replace(self, inputs=inputs, rows=rows, columns=columns, targets=targets)


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; to a GPU without waiting for the work that is queued there."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
