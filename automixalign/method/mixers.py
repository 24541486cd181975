"""The algorithm of AutoMixAlign (arXiv 2506.00569) and the ways of mixing it is compared with.

k tasks, a policy theta, a specialist theta_i per task. The excess loss of an example z of task i is

    e(theta, z) = max(L(theta, z) - L(theta_i, z), 0)            L the DPO loss, L(theta_i, z) cached

and AutoMixAlign seeks  min_theta max_{alpha in simplex} sum_i alpha_i E_{z in D_i} e(theta, z).
The player of alpha is a *mixer*: it draws the tasks of a step's batch, weighs their examples, and afterwards
sees the excess they had. With B pairs a step, n_i of them of task i, the training loss of the step is

    (1/B) sum_z w_z e(theta, z)      w_z = alpha_i B / n_i  (AMA-R: the objective is reweighted)
                                     w_z = 1                (AMA-S: the data is resampled, z ~ alpha)

A step trains with the alpha that stood *before* it and updates alpha after it. That makes gradient accumulation
and several processes equal to one large batch; group DRO's reference code uses the alpha after the update.
What a mixer remembers is q, unsmoothed and in logarithms; alpha = (1-c) q + c/k is derived for use only, for
feeding the smoothed alpha back into the state does not converge even in the convex case.

To add a way of mixing, write one class here and decorate it: the configuration, the DAG and the tests find it.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import model_validator

from automixalign.system.schema import Flag, Fraction, NonNegative, PositiveFraction, Schema

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Quantity = Literal["loss", "difference", "excess"]
"""Of an example: L(theta, z); L(theta, z) - L(theta_i, z); e(theta, z), the difference clipped at 0."""

MIXERS: dict[str, type["Mixer"]] = {}


def _named(name: str) -> Callable[[type["Mixer"]], type["Mixer"]]:
    def register(cls: type["Mixer"]) -> type["Mixer"]:
        MIXERS[name] = cls
        return cls

    return register


class Options(Schema):
    """What a configuration may set of a way of mixing: nothing."""


class Mixer:
    """How the tasks share a generalist's training.

    Args:
        sizes: training pairs of each task; k of them.
        seed: every draw is a function of it and of the step.
        options: by the names of `schema`.

    Raises:
        pydantic.ValidationError: an option is unknown or impossible.
    """

    schema: ClassVar[type[Options]] = Options
    every_task_each_step: ClassVar[bool] = True
    """Each step holds pairs of every task, so a batch has at least k."""
    trains_on: Quantity = "loss"
    """What of each example the gradient is taken of."""
    learns_from: Quantity = "loss"
    """What of each example `update` is shown."""

    def __init__(self, sizes: list[int], seed: int, **options: Any) -> None:
        self.sizes, self.seed, self.k = sizes, seed, len(sizes)
        self.schema.model_validate(options)

    def weights(self) -> Floats:
        """Alpha: the current task weights, shape (k,), summing to 1."""
        return np.full(self.k, 1 / self.k)

    def draw(self, step: int, batch_size: int) -> Ints:
        """The task of each of the step's pairs, shape (batch_size,): here an equal share of every task."""
        return (step * batch_size + np.arange(batch_size)) % self.k

    def example_weights(self, tasks: Ints) -> Floats:
        """w_z of each of the step's pairs, shape (batch_size,), from their tasks."""
        share = self.weights() * len(tasks) / np.maximum(np.bincount(tasks, minlength=self.k), 1)
        return np.asarray(share[tasks])

    def update(self, seen: Floats, counts: Ints) -> None:
        """Take in what the step showed: per task the sum of `learns_from` and the number of pairs, (k,)."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold, as JSON."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up a `state`."""


@_named("uniform")
class Uniform(Mixer):
    """The DPO loss with an equal share of every task."""


@_named("uniform-clip")
class UniformClip(Mixer):
    """The clipped excess loss with an equal share of every task: AMA-R with eta = 0, its natural ablation."""

    trains_on = "excess"


@_named("standard")
class Standard(Mixer):
    """Total-loss DPO: the pooled pairs in a shuffled order, so tasks appear in proportion to their size."""

    every_task_each_step = False

    def weights(self) -> Floats:
        return np.asarray(self.sizes, dtype=np.float64) / sum(self.sizes)

    def draw(self, step: int, batch_size: int) -> Ints:
        places = range(step * batch_size, (step + 1) * batch_size)
        epochs = [divmod(place, sum(self.sizes)) for place in places]
        return np.array([_shuffled_pool(tuple(self.sizes), self.seed, epoch)[at] for epoch, at in epochs])

    def example_weights(self, tasks: Ints) -> Floats:
        return np.ones(len(tasks))


@lru_cache(maxsize=2)
def _shuffled_pool(sizes: tuple[int, ...], seed: int, epoch: int) -> Ints:
    """The task of every pooled pair, in the order of an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(np.repeat(np.arange(len(sizes)), sizes))


class AdaptiveOptions(Options):
    """Options of AMA-R and AMA-S. Those that are off by default depart from the paper: they are ablations."""

    eta: NonNegative = 0.03
    """Step size of the weights. 0 keeps them uniform; from 1 on they are unstable. Tuned over 400 steps, AMA-R
    took .01 on one setup and .03 on another, AMA-S the other way round (benchmarks/results/quality.md)."""
    c: Fraction = 0.1
    """Smoothing: every task keeps at least c/k of the weight. From .05 to .3 it hardly matters to AMA-R where
    eta is small, and a larger c makes up for a large eta, on both setups where it was tried
    (benchmarks/results/quality.md)."""
    anneal: Flag = False
    """Step t uses eta / sqrt(t), as convergence over any horizon asks for; start from a larger eta."""
    discount: PositiveFraction = 1.0
    """log q is multiplied by it before each gain: what a task lagged by long ago is forgotten."""
    optimistic: Flag = False
    """Count the latest gain twice and take it back at the next step: optimistic hedge (Rakhlin and Sridharan
    2013, arXiv 1311.1869), whose last iterates circle less around the saddle."""
    allocate: Flag = False
    """AMA-R: a step holds about alpha_i B pairs of task i, at least one, in place of B/k. The objective is the
    same, but a heavy task is no longer a few pairs with large weights, whose gradient is mostly noise
    (proportional allocation, Neyman 1934; An et al. 2021, arXiv 2009.13447). It left the worst task closer to
    its specialist on the setup it was found on and on one that had no part in that
    (benchmarks/results/quality.md)."""
    average_alpha: Flag = False
    """Mix by the mean of alpha over the run so far in place of its latest value."""
    task_clip: Flag = False
    """Show the update max(mean_i(L - L_i), 0), clipped once a task. Clipped once an example, the noise of a
    task's labels counts as excess. It made no difference that could be told on two setups
    (benchmarks/results/quality.md)."""
    unclipped_gradient: Flag = False
    """Train on L - L_i, also where the specialist is worse; the update still sees the clipped excess. Worse
    than the clipped gradient where labels are noisy (benchmarks/results/quality.md)."""
    raw_loss: Flag = False
    """Do without the specialists: L in place of the excess, both in the gradient and in the update."""

    @model_validator(mode="after")
    def _raw_loss_is_not_clipped(self) -> Self:
        if self.raw_loss and (self.task_clip or self.unclipped_gradient):
            raise ValueError("'raw_loss' has no excess that 'task_clip' or 'unclipped_gradient' could change")
        return self


class _MultiplicativeWeights(Mixer):
    """Hedge over the tasks: log q_i grows by eta times the task's gain; alpha = (1-c) q + c/k."""

    schema = AdaptiveOptions

    def __init__(self, sizes: list[int], seed: int, **options: Any) -> None:
        super().__init__(sizes, seed, **options)
        self.options = AdaptiveOptions.model_validate(options)
        raw, clip_later = self.options.raw_loss, self.options.task_clip
        self.trains_on = "loss" if raw else "difference" if self.options.unclipped_gradient else "excess"
        self.learns_from = "loss" if raw else "difference" if clip_later else "excess"
        self.log_q = np.full(self.k, -np.log(self.k))
        self.updates, self.latest = 0, np.zeros(self.k)
        self.mean_alpha = self._alpha()

    def weights(self) -> Floats:
        return self.mean_alpha if self.options.average_alpha else self._alpha()

    def _alpha(self) -> Floats:
        return np.asarray((1 - self.options.c) * np.exp(self.log_q) + self.options.c / self.k)

    def _gain(self, gain: Floats) -> None:
        if self.options.task_clip:
            gain = np.maximum(gain, 0)
        if self.options.optimistic:
            gain, self.latest = 2 * gain - self.latest, gain
        self.updates += 1
        eta = self.options.eta / (np.sqrt(self.updates) if self.options.anneal else 1)
        grown = self.options.discount * self.log_q + eta * gain
        self.log_q = grown - np.logaddexp.reduce(grown)
        self.mean_alpha = self.mean_alpha + (self._alpha() - self.mean_alpha) / (self.updates + 1)

    def state(self) -> dict[str, Any]:
        arrays = {"log_q": self.log_q, "mean_alpha": self.mean_alpha, "latest": self.latest}
        return {"updates": self.updates, **{name: array.tolist() for name, array in arrays.items()}}

    def load(self, state: Mapping[str, Any]) -> None:
        self.log_q, self.mean_alpha, self.latest = (
            np.array(state[name]) for name in ("log_q", "mean_alpha", "latest")
        )
        self.updates = state["updates"]


@_named("ama-r")
class Reweighting(_MultiplicativeWeights):
    """AMA-R: group DRO (Sagawa et al. 2019, arXiv 1911.08731) on the excess loss.

    Each step holds every task; its gain is lambda_i, the mean excess of its pairs in the step.
    """

    def draw(self, step: int, batch_size: int) -> Ints:
        if not self.options.allocate:
            return super().draw(step, batch_size)
        # Systematic sampling: each share is rounded up or down, and right on average.
        ends = np.cumsum(self.weights() / self.weights().sum()) * (batch_size - self.k)
        ends[-1] = batch_size - self.k
        ends = np.floor(ends + np.random.default_rng([self.seed, step]).uniform())
        return np.repeat(np.arange(self.k), 1 + np.diff(ends, prepend=0.0).astype(np.int64))

    def update(self, seen: Floats, counts: Ints) -> None:
        self._gain(seen / np.maximum(counts, 1))


class ResamplingOptions(AdaptiveOptions):
    """Options of AMA-S, which draws its pairs by the weights anyway."""

    @model_validator(mode="after")
    def _allocates_already(self) -> Self:
        if self.allocate:
            raise ValueError("'allocate' is AMA-R's; AMA-S draws its pairs by the task weights as it is")
        return self


@_named("ama-s")
class Resampling(_MultiplicativeWeights):
    """AMA-S: EXP3 (Auer et al. 2002) on the excess loss.

    Each pair's task is drawn from alpha, so the loss is a plain mean; the gain is the importance-weighted,
    unbiased estimate lambda_i = (1/B) sum_{z of task i} e(z) / alpha_i. Keep eta <= c / (k max e): a small c
    collapses onto one task.
    """

    schema = ResamplingOptions
    every_task_each_step = False

    def draw(self, step: int, batch_size: int) -> Ints:
        random = np.random.default_rng([self.seed, step])
        alpha = self.weights()
        return random.choice(self.k, size=batch_size, p=alpha / alpha.sum())

    def example_weights(self, tasks: Ints) -> Floats:
        return np.ones(len(tasks))

    def update(self, seen: Floats, counts: Ints) -> None:
        # A task without weight is never drawn: its excess is 0, and so is its estimate.
        alpha = np.maximum(self.weights(), np.finfo(np.float64).tiny)
        self._gain(seen / alpha / counts.sum())


class Draws:
    """Which pair of a task comes next: each task's pairs in a fresh shuffled order an epoch.

    A pure function of (seed, task, how many pairs of the task were drawn before), so `taken` is all its state.
    """

    def __init__(self, sizes: list[int], seed: int) -> None:
        self.sizes, self.seed = sizes, seed
        self.taken = [0] * len(sizes)
        self._order: dict[int, tuple[int, Ints]] = {}

    def next(self, task: int) -> int:
        """The index, within its task, of the task's next pair."""
        epoch, place = divmod(self.taken[task], self.sizes[task])
        self.taken[task] += 1
        if self._order.get(task, (-1,))[0] != epoch:
            random = np.random.default_rng([self.seed, task, epoch])
            self._order[task] = (epoch, random.permutation(self.sizes[task]))
        return int(self._order[task][1][place])
