"""Shares by a power of the size."""

import numpy as np

from automixalign.method.mixer import Floats, Options, Proportional, register
from automixalign.system.schema import Fraction


class TemperatureOptions(Options):
    """Options of `temperature`."""

    tau: Fraction = 0.3
    """Power of the size: 1 is the size itself, 0 gives every task the same share. mT5 takes 0.3."""


@register("temperature")
class Temperature(Proportional):
    """DPO with shares by size to the power of tau: mT5's mix of languages (Xue et al. 2020, arXiv 2010.11934).

    In other papers tau is alpha, or 1/T of a temperature T.
    """

    schema = TemperatureOptions
    options: TemperatureOptions

    def weights(self) -> Floats:
        shares = np.array(self.sizes, dtype=np.float64) ** self.options.tau
        return np.asarray(shares / shares.sum())
