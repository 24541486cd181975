"""What a configuration says of the quickstart: the settings of the tiny model, and the synthetic tasks."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from automixalign.quickstart.synthetic import SYNTHETIC_TASKS
from automixalign.system.schema import Count, Fraction, Positive, Schema

TINY_POSITIONS = 256
"""Tokens that a `TinyModel` accepts; a synthetic conversation has about 25."""

_PREFIX = "synthetic:"


class TinyModel(Schema):
    """A small Llama with a character vocabulary, trained by SFT on the synthetic tasks."""

    hidden_size: Annotated[Count, Field(le=4096)] = 64
    """Width of the model."""
    layers: Annotated[Count, Field(le=64)] = 2
    """Decoder layers."""
    heads: Count = 4
    """Attention heads of each layer."""
    steps: Count = 600
    """Optimiser steps of the SFT."""
    batch_size: Count = 32
    """Conversations of one step."""
    learning_rate: Positive = 3e-3
    """Peak learning rate."""
    rows_per_task: Count = 4000
    """Conversations of each synthetic task to train on."""
    right_answers: Fraction = 0.5
    """Share of the training texts with the right answer; the others have a wrong answer of the same form."""

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"'hidden_size' must be a multiple of twice 'heads', {2 * self.heads}")
        limit = min(task.prompts for task in SYNTHETIC_TASKS.values())
        if self.rows_per_task > limit:
            raise ValueError(f"'rows_per_task' may be {limit} at most, the prompts of the smallest task")
        return self


def synthetic_name(source: str) -> str | None:
    """The synthetic task that a task's source `synthetic:NAME` names; None for other sources."""
    return source.removeprefix(_PREFIX) if source.startswith(_PREFIX) else None
