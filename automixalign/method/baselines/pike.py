"""PiKE (Li et al. 2025, arXiv 2502.06244): shares by the norm and the noise of the tasks' gradients."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from automixalign.method.mixer import Floats, GradientSample, Options, Proportional, register
from automixalign.method.mixers import Hedge
from automixalign.system.schema import Count, NonNegative


class PikeOptions(Options):
    """Options of `pike`."""

    zeta1: NonNegative = 0.1
    """Factor of a task's squared gradient norm: a larger one moves the weights faster towards tasks that still
    have much to gain."""
    zeta2: NonNegative = 0.1
    """Factor of a task's gradient variance: a larger one moves the weights faster away from noisy tasks."""
    every: Count = 20
    """Steps between two measurements of the gradients (T_0 of the paper)."""
    pairs: Annotated[Count, Field(ge=2)] = 8
    """Training pairs of each task that a measurement takes."""


@register("pike")
class Pike(Hedge, Proportional):
    """PiKE (Li et al. 2025, arXiv 2502.06244): pairs go to tasks with large and certain gradients.

    Algorithm 1 of the paper. Before every `every`-th step, with a batch of b pairs:

        w_k <- w_k exp(zeta1 ||grad L_k||^2 - zeta2 / (2b) sigma_k^2), then divided by their sum

    The next steps hold b w_k pairs of task k, rounded up or down at random (the paper rounds to the nearest).
    ||grad L_k||^2 and sigma_k^2 are estimated without bias from `pairs` training pairs of each task, which are
    drawn for this only; the paper does not say how it estimates them.
    """

    schema = PikeOptions
    options: PikeOptions

    def __init__(self, sizes: Mapping[str, int], seed: int, **options: Any) -> None:
        super().__init__(sizes, seed, **options)
        self.gradients = GradientSample(self.options.every, self.options.pairs)

    def learn_gradients(self, squared_norms: Floats, variances: Floats, batch_size: int) -> None:
        self.grow(self.options.zeta1 * squared_norms - self.options.zeta2 / (2 * batch_size) * variances)
