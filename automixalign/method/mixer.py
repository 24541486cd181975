"""What a mixer is, the order in which it draws pairs, and the registry of all mixers.

The algorithm itself is in `automixalign.method.mixers`. To add a mixer, derive a class from `Mixer` and
decorate it with `register("name")`; the configuration, the DAG and the report then know it by that name.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from automixalign.system.plugins import Plugins
from automixalign.system.schema import Schema

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Quantity = Literal["loss", "difference", "excess"]
"""A number for each pair z of task i: L(theta, z); L(theta, z) - L(theta_i, z); the difference, clipped at
0."""


class GradientSample(NamedTuple):
    """When the trainer measures the gradients of the tasks, and on how many pairs."""

    every: int
    """Steps from one measurement to the next; the first is before the first step."""
    pairs: int
    """Pairs of each task, 2 or more."""


class Options(Schema):
    """What a configuration may set of a mixer. The base class has no options."""

    def check(self, tasks: Sequence[str]) -> None:
        """Raise ValueError, naming the option, unless the options fit these tasks."""


class Mixer:
    """How the tasks share a training. The base class gives every task an equal share.

    Args:
        sizes: task -> number of its training pairs, in the order of every array; k is the number of tasks.
        seed: every draw is a function of the seed and the step.
        options: by the names of `schema`.

    Raises:
        pydantic.ValidationError: an option is unknown or impossible.
    """

    schema: ClassVar[type[Options]] = Options
    every_task_each_step: ClassVar[bool] = True
    """Each step holds pairs of every task, so a batch has at least k."""
    trains_on: Quantity = "loss"
    """The quantity whose gradient trains the policy."""
    learns_from: Quantity = "loss"
    """The quantity that `update` receives."""
    gradients: GradientSample | None = None
    """What `learn_gradients` needs; None if the mixer does not need it."""

    def __init__(self, sizes: Mapping[str, int], seed: int, **options: Any) -> None:
        self.tasks, self.sizes = list(sizes), list(sizes.values())
        self.seed, self.k = seed, len(sizes)
        self.options = self.schema.model_validate(options)

    def weights(self) -> Floats:
        """Alpha: the current task weights, shape (k,). They sum to 1."""
        return np.full(self.k, 1 / self.k)

    def draw(self, step: int, batch_size: int) -> Ints:
        """The task of each pair of the step, shape (batch_size,)."""
        return (step * batch_size + np.arange(batch_size)) % self.k

    def example_weights(self, tasks: Ints) -> Floats:
        """The weight w_z of each pair of the step, from the pairs' tasks; both have shape (batch_size,)."""
        share = self.weights() * len(tasks) / np.maximum(np.bincount(tasks, minlength=self.k), 1)
        return np.asarray(share[tasks])

    def update(self, totals: Floats, counts: Ints) -> None:
        """Learn from a step.

        Args:
            totals: sum of `learns_from` over the step's pairs of each task, shape (k,).
            counts: number of the step's pairs of each task, shape (k,).
        """

    def learn_gradients(self, squared_norms: Floats, variances: Floats, batch_size: int) -> None:
        """Learn from a measurement, before the next step is drawn.

        Args:
            squared_norms: ||grad L_i||^2 of each task, with L_i its mean loss, shape (k,); a noisy estimate,
                which can be negative.
            variances: E ||grad L(z) - grad L_i||^2 over pairs z of the task, shape (k,).
            batch_size: number of pairs of a step.
        """

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold, as JSON."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""


class Proportional(Mixer):
    """The share of task i in a step of B pairs is alpha_i, so the loss of the step is a plain mean."""

    every_task_each_step = False

    def draw(self, step: int, batch_size: int) -> Ints:
        counts = systematic_counts(self.weights(), batch_size, np.random.default_rng([self.seed, step]))
        return np.repeat(np.arange(self.k), counts)

    def example_weights(self, tasks: Ints) -> Floats:
        return np.ones(len(tasks))


def systematic_counts(shares: Floats, total: int, random: np.random.Generator) -> Ints:
    """Divide `total` pairs by systematic sampling: shares are rounded up or down, and exact in expectation.

    Args:
        shares: not negative, shape (k,); they are divided by their sum.
        total: number of pairs.
        random: draws one number.

    Returns:
        The number of pairs of each task, shape (k,).
    """
    ends = np.cumsum(shares / shares.sum()) * total
    ends[-1] = total
    return np.diff(np.floor(ends + random.uniform()), prepend=0.0).astype(np.int64)


_mixers: Plugins[type[Mixer]] = Plugins("mixer", "automixalign.method.baselines", base=Mixer)
register = _mixers.register
load_mixers = cache(_mixers.load)


class Draws:
    """Which pair of a task comes next: in each epoch, the task's pairs in another random order.

    The order is a function of the seed, the task and the epoch, so `drawn` is the whole state.
    """

    def __init__(self, sizes: list[int], seed: int) -> None:
        self.sizes, self.seed = sizes, seed
        self.drawn = [0] * len(sizes)
        """The number of pairs of each task so far."""
        self._order: dict[int, tuple[int, Ints]] = {}

    def next(self, task: int) -> int:
        """The index, within its task, of the task's next pair."""
        epoch, position = divmod(self.drawn[task], self.sizes[task])
        self.drawn[task] += 1
        if self._order.get(task, (-1,))[0] != epoch:
            random = np.random.default_rng([self.seed, task, epoch])
            self._order[task] = (epoch, random.permutation(self.sizes[task]))
        return int(self._order[task][1][position])
