"""Mixing methods: their section of an experiment, and the settings of `train_generalist`."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import ConfigDict, model_validator

from automixalign.config.training import Budget, TrainingSettings
from automixalign.method.mixer import Mixer
from automixalign.method.mixers import registered_mixers
from automixalign.system.schema import Name, Positive, PositiveFraction, Schema, did_you_mean


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
        """Its own keys, and the options of the mixer."""
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


class GeneralistSettings(TrainingSettings):
    """Of `train_generalist`."""

    method: MethodSpec

    @property
    def name(self) -> str:
        """The generalist's name in the leaderboard."""
        return self.method.name
