"""Fixed task weights."""

from collections.abc import Sequence

import numpy as np
from pydantic import field_validator

from automixalign.method.mixer import Floats, Options, Proportional, register
from automixalign.system.schema import NonNegative, did_you_mean


class StaticOptions(Options):
    """Options of `static`."""

    weights: dict[str, NonNegative]
    """Task -> its share of the pairs, relative to the others'. Every task has one; 0 leaves a task out."""

    @field_validator("weights")
    @classmethod
    def _some_task_has_weight(cls, weights: dict[str, float]) -> dict[str, float]:
        if not any(weights.values()):
            raise ValueError("at least one task needs a weight above 0")
        return weights

    def check(self, tasks: Sequence[str]) -> None:
        for task in self.weights:
            if task not in tasks:
                known = f"{did_you_mean(task, tasks)}; there are: {', '.join(tasks)}"
                raise ValueError(f"weights.{task}: there is no such task{known}")
        for task in tasks:
            if task not in self.weights:
                raise ValueError(f"weights.{task}: the task has no weight; 0 leaves it out")


@register("static")
class Static(Proportional):
    """DPO with task weights from the configuration: `weights: {helpful: 2, harmless: 1}`."""

    schema = StaticOptions
    options: StaticOptions

    def weights(self) -> Floats:
        weights = np.array([self.options.weights[task] for task in self.tasks])
        relative = weights / weights.max()  # a sum of large weights overflows
        return np.asarray(relative / relative.sum())
