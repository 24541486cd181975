"""Ablations of AMA-R and AMA-S that the evidence found without effect (benchmarks/results/quality.md).

They are registered as a user's own mixer is. A configuration names this module and then one of its methods:

    plugins: [benchmarks.mixers]
    methods: [{method: ama-r-ablation, discount: 0.99}]
"""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from pydantic import model_validator

from automixalign.method.mixer import Floats, register
from automixalign.method.mixers import (
    AdaptiveOptions,
    MultiplicativeWeights,
    Resampling,
    Reweighting,
    ReweightingOptions,
)
from automixalign.system.schema import Flag, PositiveFraction


class AblationOptions(AdaptiveOptions):
    """Departures from the paper."""

    anneal: Flag = False
    """Step t uses eta / sqrt(t), which convergence over any horizon asks for; start with a larger eta."""
    discount: PositiveFraction = 1.0
    """log q is multiplied by it before each gain, so that an early lag of a task is forgotten."""
    optimistic: Flag = False
    """Count the latest gain twice and take it back at the next step: optimistic hedge (Rakhlin and Sridharan
    2013, arXiv 1311.1869), whose last iterates circle less around the saddle."""
    average_alpha: Flag = False
    """Mix by the mean of alpha over the run so far instead of its latest value."""
    task_clip: Flag = False
    """The update receives max(mean_i(L - L_i), 0), clipped once a task. The excess is clipped once a pair, so
    the noise of a task's labels counts as excess."""
    unclipped_gradient: Flag = False
    """Train on L - L_i, also where the specialist is worse. The update still receives the clipped excess."""

    @model_validator(mode="after")
    def _raw_loss_is_not_clipped(self) -> Self:
        if self.raw_loss and (self.task_clip or self.unclipped_gradient):
            raise ValueError("'raw_loss' has no excess that 'task_clip' or 'unclipped_gradient' could change")
        return self


class Ablation(MultiplicativeWeights):
    """Hedge with the departures of `AblationOptions`."""

    schema = AblationOptions
    options: AblationOptions

    def __init__(self, sizes: Mapping[str, int], seed: int, **options: Any) -> None:
        super().__init__(sizes, seed, **options)
        if self.options.unclipped_gradient:
            self.trains_on = "difference"
        if self.options.task_clip:
            self.learns_from = "difference"
        self.updates, self.last_gain = 0, np.zeros(self.k)
        self.mean_alpha = super().weights()

    def weights(self) -> Floats:
        return self.mean_alpha if self.options.average_alpha else super().weights()

    def add_gain(self, gain: Floats) -> None:
        if self.options.task_clip:
            gain = np.maximum(gain, 0)
        if self.options.optimistic:
            gain, self.last_gain = 2 * gain - self.last_gain, gain
        self.updates += 1
        eta = self.options.eta / (np.sqrt(self.updates) if self.options.anneal else 1)
        grown = self.options.discount * self.log_q + eta * gain
        self.log_q = grown - np.logaddexp.reduce(grown)
        self.mean_alpha = self.mean_alpha + (super().weights() - self.mean_alpha) / (self.updates + 1)

    def state(self) -> dict[str, Any]:
        arrays = {"mean_alpha": self.mean_alpha.tolist(), "last_gain": self.last_gain.tolist()}
        return {**super().state(), "updates": self.updates, **arrays}

    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        self.updates = state["updates"]
        self.mean_alpha, self.last_gain = np.array(state["mean_alpha"]), np.array(state["last_gain"])


class ReweightingAblationOptions(AblationOptions, ReweightingOptions):
    """Options of `ama-r-ablation`."""


@register("ama-r-ablation")
class ReweightingAblation(Ablation, Reweighting):
    """AMA-R with departures."""

    schema = ReweightingAblationOptions
    options: ReweightingAblationOptions


@register("ama-s-ablation")
class ResamplingAblation(Ablation, Resampling):
    """AMA-S with departures."""
