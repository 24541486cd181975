"""The metrics of this project, in the order of the leaderboard's columns."""

from collections.abc import Sequence

import numpy as np

from automixalign.scoring.caches import Floats
from automixalign.scoring.metrics.registry import (
    Answer,
    NotMeasuredError,
    PairScores,
    Values,
    metric,
)


@metric("gap", better="lower")
def gap(pairs: PairScores) -> Floats:
    """L(theta, z) - L(theta_i, z). Below 0, the policy is better than the specialist."""
    return pairs.losses - pairs.specialist_losses


@metric("excess", better="lower")
def excess(pairs: PairScores) -> Floats:
    """max(L(theta, z) - L(theta_i, z), 0): the objective of AMA (arXiv 2506.00569)."""
    return np.maximum(pairs.losses - pairs.specialist_losses, 0)


@metric("accuracy", better="higher")
def accuracy(pairs: PairScores) -> Values:
    """Whether the policy prefers the chosen answer. The reference prefers neither: its margins are all 0."""
    if not pairs.margins.any():
        raise NotMeasuredError
    return pairs.margins > 0


@metric("pass_rate", better="higher", of="answers")
def pass_rate(answers: Sequence[Answer]) -> float:
    """Share of a prompt's answers that the verifier passes; of several, it estimates pass@1."""
    return float(np.mean([answer["passed"] for answer in answers]))


@metric("loss", better="lower", headline=False)
def loss(pairs: PairScores) -> Floats:
    """L(theta, z)."""
    return pairs.losses


@metric("margin", better="higher", headline=False)
def margin(pairs: PairScores) -> Floats:
    """Reward of the chosen answer minus that of the rejected one."""
    return pairs.margins


@metric("chosen_drift", better=None, headline=False)
def chosen_drift(pairs: PairScores) -> Floats:
    """Log-ratio of the chosen answer: how far the policy moved from the reference, and in which direction."""
    return pairs.chosen_log_ratios
