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


@metric("pass_rate", better="higher", of="answers", share=True)
def pass_rate(answers: Sequence[Answer]) -> float:
    """Share of a prompt's answers that the verifier passes: pass@1."""
    return float(np.mean(_passed(answers)))


@metric("pass_at_k", better="higher", of="answers", headline=False, share=True)
def pass_at_k(answers: Sequence[Answer]) -> float:
    """Whether any of k answers passes.

    The mean is pass@k by the unbiased estimator of Chen et al. (2021, arXiv 2107.03374),
    1 - C(n - c, k) / C(n, k), for n = k answers of which c pass.
    """
    if len(answers) == 1:
        raise NotMeasuredError
    return float(any(_passed(answers)))


@metric("win_rate", better="higher", of="answers", share=True)
def win_rate(answers: Sequence[Answer]) -> float:
    """Share of a prompt's answers that the judge prefers to the baseline's; a tie counts half."""
    wins = [answer.get("win") for answer in answers]
    if None in wins:
        raise NotMeasuredError
    return float(np.mean(np.asarray(wins, dtype=np.float64)))


def _passed(answers: Sequence[Answer]) -> list[bool]:
    """Whether each answer passes; not measured without a verifier."""
    passed = [answer["passed"] for answer in answers]
    if None in passed:
        raise NotMeasuredError
    return passed


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
    """Log-probability of the chosen answer under the policy less that under the reference model, in nats. Below
    0, the policy gives it less probability, which DPO alone does not prevent.
    """
    return pairs.chosen_log_ratios
