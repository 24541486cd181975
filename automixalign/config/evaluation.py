"""Scoring: its section of an experiment, and the settings of `reference_logps` and `evaluate`."""

from automixalign.config.settings import Precision, Settings
from automixalign.method.losses import Loss
from automixalign.system.schema import Count, Flag, Schema


class EvaluationSpec(Schema):
    """What is measured on the held-out test split, for every model alike."""

    batch_size: Count = 32
    """Sequences of one forward pass that computes log-probabilities."""
    precision: Precision = "fp32"
    """Precision of all scoring: reference log-probabilities, specialist losses, evaluation."""
    generate: Flag = True
    """Whether to generate answers and verify them."""
    max_new_tokens: Count = 64
    """The largest number of tokens of an answer; the default also of `ama chat` and of a registered model."""
    max_prompts: Count | None = None
    """The largest number of test prompts of a task to generate for; by default all."""


class ScoringSettings(Settings):
    """Of `reference_logps`."""

    batch_size: int
    precision: Precision


class EvaluationSettings(Settings):
    """Of `evaluate`."""

    evaluation: EvaluationSpec
    loss: Loss
    verifiers: dict[str, str]
    """Task -> verifier, for the tasks whose generations can be verified."""
