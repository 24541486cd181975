"""The algorithm of AutoMixAlign (arXiv 2506.00569), and the mixers that it is compared with.

There are k tasks, a policy theta and a specialist theta_i for each task. The excess loss of a pair z of task i:

    e(theta, z) = max(L(theta, z) - L(theta_i, z), 0)            L is the DPO loss; L(theta_i, z) is cached

AutoMixAlign seeks  min_theta max_{alpha in simplex} sum_i alpha_i E_{z in D_i} e(theta, z).
A *mixer* plays alpha. For each step it draws the tasks of the pairs and weighs the pairs; after the step it
learns from their excess. With B pairs in a step, n_i of them of task i, the training loss of the step is

    (1/B) sum_z w_z e(theta, z)      w_z = alpha_i B / n_i  (AMA-R reweights the objective)
                                     w_z = 1                (AMA-S resamples the data: z ~ alpha)

A step trains with the alpha from *before* the step and updates alpha after it. Gradient accumulation and
several processes therefore equal one large batch. (The reference code of group DRO uses the alpha from after
the update.)

The state of a mixer is log q, without smoothing. alpha = (1-c) q + c/k is derived from it for use only: with
the smoothed alpha as the state, the iteration does not converge even on a convex problem.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from automixalign.method.mixer import Floats, Ints, Mixer, Options, load_mixers, register, systematic_counts
from automixalign.system.schema import Flag, Fraction, NonNegative


@register("standard")
class Standard(Mixer):
    """DPO on the pooled pairs in random order: tasks appear in proportion to their sizes."""

    every_task_each_step = False

    def weights(self) -> Floats:
        return np.asarray(self.sizes, dtype=np.float64) / sum(self.sizes)

    def draw(self, step: int, batch_size: int) -> Ints:
        positions = range(step * batch_size, (step + 1) * batch_size)
        epochs = [divmod(position, sum(self.sizes)) for position in positions]
        return np.array([_shuffled_pool(tuple(self.sizes), self.seed, epoch)[at] for epoch, at in epochs])

    def example_weights(self, tasks: Ints) -> Floats:
        return np.ones(len(tasks))


@lru_cache(maxsize=2)
def _shuffled_pool(sizes: tuple[int, ...], seed: int, epoch: int) -> Ints:
    """The task of every pooled pair, in the order of an epoch; shape (sum of the sizes,)."""
    return np.random.default_rng([seed, epoch]).permutation(np.repeat(np.arange(len(sizes)), sizes))


@register("uniform")
class Uniform(Mixer):
    """DPO with an equal share of every task."""


@register("uniform-clip")
class UniformClip(Mixer):
    """The excess loss with an equal share of every task: AMA-R with eta = 0, its natural ablation."""

    trains_on = "excess"


class AdaptiveOptions(Options):
    """Options of AMA-R and AMA-S."""

    eta: NonNegative = 0.03
    """Step size of the weights. 0 keeps them uniform; from 1 on they are unstable. Tuned over 400 steps, AMA-R
    took .01 on one setup and .03 on another, and AMA-S the other way round (benchmarks/results/quality.md)."""
    c: Fraction = 0.1
    """Smoothing: every task keeps at least c/k of the weight. With a small eta, values from .05 to .3 change
    AMA-R little; a larger c makes up for a large eta (benchmarks/results/quality.md, two setups)."""
    raw_loss: Flag = False
    """An ablation: the DPO loss replaces the excess, in the gradient and in the update. No specialist
    takes part."""


class Hedge(Mixer):
    """Multiplicative weights (Freund and Schapire 1997): alpha = q, which starts equal."""

    def __init__(self, sizes: Mapping[str, int], seed: int, **options: Any) -> None:
        super().__init__(sizes, seed, **options)
        self.log_q = np.full(self.k, -np.log(self.k))

    def weights(self) -> Floats:
        return np.asarray(np.exp(self.log_q))

    def grow(self, logs: Floats) -> None:
        """Multiply q by e to the power of `logs`, shape (k,), and divide it by its sum."""
        grown = self.log_q + logs
        self.log_q = grown - np.logaddexp.reduce(grown)

    def state(self) -> dict[str, Any]:
        return {"log_q": self.log_q.tolist()}

    def load(self, state: Mapping[str, Any]) -> None:
        self.log_q = np.array(state["log_q"])


class MultiplicativeWeights(Hedge):
    """log q_i grows by eta times the gain of task i; alpha = (1-c) q + c/k."""

    schema = AdaptiveOptions
    options: AdaptiveOptions

    def __init__(self, sizes: Mapping[str, int], seed: int, **options: Any) -> None:
        super().__init__(sizes, seed, **options)
        self.trains_on = self.learns_from = "loss" if self.options.raw_loss else "excess"

    def weights(self) -> Floats:
        return np.asarray((1 - self.options.c) * super().weights() + self.options.c / self.k)

    def add_gain(self, gain: Floats) -> None:
        """One step of Hedge, on the gain of each task, shape (k,)."""
        self.grow(self.options.eta * gain)


class ReweightingOptions(AdaptiveOptions):
    """Options of AMA-R."""

    allocate: Flag = False
    """A step of B pairs holds about alpha_i B of task i, at least one, instead of B/k. The objective is the
    same. But the gradient of a task with a large weight is less noisy, because it has more pairs (proportional
    allocation, Neyman 1934; An et al. 2021, arXiv 2009.13447). On both setups where it was tried, it left the
    worst task closer to its specialist (benchmarks/results/quality.md)."""


@register("ama-r")
class Reweighting(MultiplicativeWeights):
    """AMA-R: group DRO (Sagawa et al. 2019, arXiv 1911.08731) on the excess loss.

    Each step holds pairs of every task. The gain of task i is lambda_i, the mean excess of its pairs in the
    step.
    """

    schema = ReweightingOptions
    options: ReweightingOptions

    def draw(self, step: int, batch_size: int) -> Ints:
        if not self.options.allocate:
            return super().draw(step, batch_size)
        random = np.random.default_rng([self.seed, step])
        return np.repeat(np.arange(self.k), 1 + systematic_counts(self.weights(), batch_size - self.k, random))

    def update(self, totals: Floats, counts: Ints) -> None:
        self.add_gain(totals / np.maximum(counts, 1))


@register("ama-s")
class Resampling(MultiplicativeWeights):
    """AMA-S: EXP3 (Auer et al. 2002) on the excess loss.

    The task of each pair is drawn from alpha, so the loss is a plain mean. The gain is the unbiased,
    importance-weighted estimate lambda_i = (1/B) sum_{z of task i} e(z) / alpha_i. Keep eta <= c / (k max e):
    with a smaller c, the weights collapse onto one task.
    """

    every_task_each_step = False

    def draw(self, step: int, batch_size: int) -> Ints:
        random = np.random.default_rng([self.seed, step])
        alpha = self.weights()
        return random.choice(self.k, size=batch_size, p=alpha / alpha.sum())

    def example_weights(self, tasks: Ints) -> Floats:
        return np.ones(len(tasks))

    def update(self, totals: Floats, counts: Ints) -> None:
        # A task without weight is never drawn: its total is 0, and so is its estimate.
        alpha = np.maximum(self.weights(), np.finfo(np.float64).tiny)
        self.add_gain(totals / alpha / counts.sum())


def registered_mixers() -> Mapping[str, type[Mixer]]:
    """Every mixer by its name: the five above, then those of `baselines` and of other packages."""
    return load_mixers()
