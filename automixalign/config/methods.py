"""Mixing methods: their section of an experiment, and the settings of `train_generalist`."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import ConfigDict, model_validator

from automixalign.config.training import TrainingSettings
from automixalign.method.mixers import registered_mixers
from automixalign.system.schema import Name, PositiveFraction, Schema, did_you_mean


class MethodSpec(Schema):
    """One way to train the generalist; every further key is an option of its mixer (`eta`, `c`, ...)."""

    model_config = ConfigDict(extra="allow")

    method: str
    """The mixer."""
    name: Name = ""
    """Its name in the leaderboard; by default the method, so two entries of one method need names."""
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


class GeneralistSettings(TrainingSettings):
    """Of `train_generalist`."""

    method: MethodSpec

    @property
    def name(self) -> str:
        """The generalist's name in the leaderboard."""
        return self.method.name
