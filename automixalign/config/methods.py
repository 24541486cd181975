"""Mixing methods: their section of an experiment, and the settings of `train_generalist`."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Self

import numpy as np
from pydantic import AfterValidator, ConfigDict, Field, WrapValidator, model_validator

from automixalign.config.settings import shorthand
from automixalign.config.training import Budget, TrainingSettings
from automixalign.method.mixer import Mixer
from automixalign.method.mixers import registered_mixers
from automixalign.system.schema import MAX_NAME, Name, Positive, PositiveFraction, Schema, did_you_mean

MAX_POINTS = 64
"""Most points of a grid: each of them is a training and an evaluation."""


class MethodSpec(Schema):
    """One way to train the generalist; every further key is an option of its mixer (`eta`, `c`, ...)."""

    model_config = ConfigDict(extra="allow")

    method: str
    """The mixer."""
    name: Name = ""
    """Its name in the leaderboard; by default the method, so two entries of one method need names."""
    learning_rate: Positive | None = None
    """Replaces the learning rate of the generalists for this method. The report then says that methods differ
    in it."""
    init: Name | None = None
    """The name of an entry of `merges`: the generalist starts from that merge of the specialists. The reference
    stays the base model. With `training.lora`, a new adapter is trained on the merge and folded into it, so the
    generalist is a full model. Without `init`, it starts from the base model."""
    of_grid: Name | None = None
    """The grid that the method is a point of, which an entry `grid` sets. The report has a section for each
    grid."""
    average_iterates: PositiveFraction | None = None
    """The generalist is the mean of the policies after each step of this last share of its training; 1 is all
    of them. The two matrices of a LoRA adapter are averaged separately."""

    @model_validator(mode="before")
    @classmethod
    def _name_by_method(cls, data: Any) -> Any:
        return {"name": data.get("method"), **data} if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        mixers = registered_mixers()
        if self.method not in mixers:
            hint = did_you_mean(self.method, mixers)
            raise ValueError(f"unknown method {self.method!r}{hint}; there are: {', '.join(mixers)}")
        checked = mixers[self.method].schema.model_validate(self.options)
        self.options.update(checked.model_dump(exclude_unset=True))
        return self

    @classmethod
    def known_keys(cls, data: Any) -> list[str]:
        """Its own keys, and the options of the mixer; those of a grid for an entry `grid`."""
        if isinstance(data, Mapping) and "grid" in data:
            return ["grid", *(f"grid.{key}" for key in cls.known_keys(data["grid"]))]
        mixer = registered_mixers().get(data.get("method", "")) if isinstance(data, Mapping) else None
        return [*cls.model_fields, *(mixer.schema.model_fields if mixer else ())]

    @property
    def options(self) -> dict[str, Any]:
        """The mixer's options that were set."""
        return self.__pydantic_extra__ or {}

    def all_options(self) -> dict[str, Any]:
        """The mixer's options with their defaults, as JSON."""
        schema = registered_mixers()[self.method].schema
        return schema.model_validate(self.options).model_dump(mode="json")

    def mixer(self, sizes: Mapping[str, int], seed: int) -> Mixer:
        """The mixer of a training.

        Args:
            sizes: task -> number of its training pairs.
            seed: of the mixer's draws.
        """
        return registered_mixers()[self.method](sizes, seed, **self.options)

    def budget(self, shared: Budget) -> Budget:
        """The budget of this method's training, from that of all generalists."""
        if self.learning_rate is None:
            return shared
        return shared.model_copy(update={"learning_rate": self.learning_rate})

    def check(self, tasks: Sequence[str], merges: Sequence[str], batch_size: int) -> None:
        """Raise ValueError unless `init` is a merge, and the mixer can mix these tasks in such steps."""
        if self.init is not None and self.init not in merges:
            raise ValueError(
                f"methods.{self.name}.init: there is no merge {self.init!r}{did_you_mean(self.init, merges)}; "
                f"'merges' has: {', '.join(merges) or 'none'}"
            )
        mixer = registered_mixers()[self.method]
        if mixer.every_task_each_step and batch_size < len(tasks):
            raise ValueError(
                f"training.batch_size: {self.name} holds pairs of every task in each step, so it must "
                f"be at least the number of tasks, {len(tasks)}; it is {batch_size}"
            )
        try:
            mixer.schema.model_validate(self.options).check(tasks)
        except ValueError as error:
            raise ValueError(f"methods.{self.name}.{error}") from error


class GridSpec(Schema):
    """Every combination of the values of those keys that have a list of values."""

    model_config = ConfigDict(extra="allow")

    method: str
    """The mixer of all points."""
    name: Name = ""
    """Name of the grid, with which the names of its points begin; by default the method."""

    @model_validator(mode="after")
    def _check_points(self) -> Self:
        self.points()
        return self

    def points(self) -> list[MethodSpec]:
        """The methods of the grid; those that differ in the last key follow each other.

        Raises:
            ValueError: no key has a list, a list is empty or has a value twice, there are too many points, or a
                point is no method.
        """
        keys = self.__pydantic_extra__ or {}
        axes = {key: values for key, values in keys.items() if isinstance(values, list)}
        if not axes:
            raise ValueError("a grid needs a key with a list of values, such as 'eta: [0.01, 0.03]'")
        for key, values in axes.items():
            if not values or any(value in values[:at] for at, value in enumerate(values)):
                raise ValueError(f"{key!r} needs values, each of them once; it is {values!r:.80}")
        count = math.prod(len(values) for values in axes.values())
        if count > MAX_POINTS:
            raise ValueError(f"it has {count} points ({', '.join(axes)}); {MAX_POINTS} at most")
        return [self._point(keys, dict(zip(axes, each, strict=True))) for each in _product(axes)]

    def _point(self, keys: Mapping[str, Any], positions: Mapping[str, int]) -> MethodSpec:
        """The method with the values at these positions of the lists."""
        values = {key: keys[key][at] for key, at in positions.items()}
        grid = self.name or self.method
        data = {**keys, **values, "method": self.method, "of_grid": grid}
        checked = MethodSpec.model_validate({**data, "name": "checked"}).model_dump()
        labels = [_label(key, checked[key], at) for key, at in positions.items()]
        name = "-".join([grid, *labels])
        if len(name) > MAX_NAME:
            raise ValueError(
                f"'name': the point {name} has more than {MAX_NAME} characters; set a shorter 'name'"
            )
        return MethodSpec.model_validate({**data, "name": name})


class _GridEntry(Schema):
    """An entry of `methods` that stands for several."""

    grid: GridSpec


def _product(axes: Mapping[str, Sequence[Any]]) -> Iterable[tuple[int, ...]]:
    return itertools.product(*(range(len(values)) for values in axes.values()))


def _label(key: str, value: Any, position: int) -> str:
    """A value in the name of a point: `eta0p01`, `lr1e-4`, `init-ties`, `no-allocate`, `weights2`."""
    key = {"learning_rate": "lr", "average_iterates": "average"}.get(key, key)
    if isinstance(value, bool):
        return key if value else f"no-{key}"
    if isinstance(value, int | float):
        plain = np.format_float_positional(value, trim="-")
        scientific = np.format_float_scientific(value, trim="-", exp_digits=1).replace("+", "")
        key += "-" if key[-1].isdigit() else ""
        return key + min(plain, scientific, key=len).replace(".", "p")
    return f"{key}-{value}" if isinstance(value, str) else f"{key}{position + 1}"


def _expand(entry: Any, handler: Any) -> Any:
    if isinstance(entry, Mapping) and "grid" in entry:
        return _GridEntry.model_validate(entry).grid.points()
    return handler(entry)


def _flatten(entries: list[Any]) -> list[MethodSpec]:
    return [method for entry in entries for method in (entry if isinstance(entry, list) else [entry])]


Methods = Annotated[
    list[Annotated[MethodSpec, shorthand("method"), WrapValidator(_expand)]],
    AfterValidator(_flatten),
    Field(min_length=1),
]
"""The methods of an experiment. In a configuration, an entry `grid` stands for the points of a `GridSpec`."""


class GeneralistSettings(TrainingSettings):
    """Of `train_generalist`."""

    method: MethodSpec

    @property
    def name(self) -> str:
        """The generalist's name in the leaderboard."""
        return self.method.name
