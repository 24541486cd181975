"""Group Robust DPO (Ramesh et al. 2024, arXiv 2405.20304): group DRO on the DPO loss."""

import numpy as np

from automixalign.method.mixer import Floats, Ints, Options, register
from automixalign.method.mixers import Hedge, Standard
from automixalign.system.schema import NonNegative


class GroupRobustOptions(Options):
    """Options of `gr-dpo`."""

    eta: NonNegative = 0.01
    """Step size of the task weights; the paper's code takes 0.01."""
    adjustment: NonNegative = 0.0
    """C of the generalization adjustment: C / sqrt(N_i) is added to the loss of task i in the update (Sagawa et
    al. 2019, equation 5; `adj` of the paper's code, where it is 0, too)."""


@register("gr-dpo")
class GroupRobust(Hedge, Standard):
    """Group Robust DPO (Ramesh et al. 2024, arXiv 2405.20304): group DRO on the DPO loss, adjusted by size.

    Algorithm 1 of the paper, for steps of B pairs. Task i has N_i of the N pairs. Pairs come in proportion to
    size, and the factor N / N_i makes up for that, in the loss and in the update:

        alpha_i <- alpha_i exp(eta (N / N_i) (1/B) sum_{z of task i} L(z)), then divided by their sum
        loss of the step = (1/B) sum_z alpha_i (N / N_i) L(z)

    Three differences: the paper has B = 1; it draws pairs with replacement, and here each pair comes once an
    epoch; it trains with the alpha from after the update, and here, as everywhere, with the one from before.
    """

    schema = GroupRobustOptions
    options: GroupRobustOptions

    def _size_factors(self) -> Floats:
        """N / N_i of each task, shape (k,)."""
        return sum(self.sizes) / np.array(self.sizes, dtype=np.float64)

    def example_weights(self, tasks: Ints) -> Floats:
        return np.asarray((self.weights() * self._size_factors())[tasks])

    def update(self, totals: Floats, counts: Ints) -> None:
        losses = self._size_factors() * totals / counts.sum()
        self.grow(self.options.eta * (losses + self.options.adjustment / np.sqrt(self.sizes)))
