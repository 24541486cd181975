"""Merges of the specialists: their section of an experiment, and the settings of `merge_specialists`."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, model_validator

from automixalign.config.settings import Settings
from automixalign.method import merge_methods
from automixalign.system.schema import Name, Number, Positive, Schema, did_you_mean


class MergeSpec(Schema):
    """One way to merge the specialists, by mergekit's name and parameters."""

    method: str
    """The merge method, by mergekit's name."""
    name: Name = ""
    """Its name in the leaderboard; by default the method."""
    parameters: dict[str, Number] = Field(default_factory=dict)
    """Values of mergekit's parameters that differ from the method's defaults."""
    weights: dict[str, Positive] = Field(default_factory=dict)
    """Task -> mergekit's `weight` of its specialist. The others take the `weight` of `parameters`."""

    @model_validator(mode="before")
    @classmethod
    def _name_by_method(cls, data: Any) -> Any:
        return {"name": data.get("method"), **data} if isinstance(data, Mapping) else data

    @classmethod
    def known_keys(cls, data: Any) -> list[str]:
        """Its own keys, and the method's parameters below `parameters`."""
        method = data.get("method") if isinstance(data, Mapping) else None
        spec = merge_methods.registered_merges().get(str(method))
        return [*cls.model_fields, *(f"parameters.{name}" for name in (spec.limits if spec else ()))]

    def check(self, tasks: Sequence[str]) -> None:
        """Raise ValueError unless the method can merge the specialists of these tasks."""
        try:
            merge_methods.check(self.method, len(tasks), self.parameters)
        except ValueError as error:
            raise ValueError(f"merges: {self.name}: {error}") from error
        for task in self.weights:
            if task not in tasks:
                raise ValueError(
                    f"merges: {self.name}: weights: there is no task {task!r}{did_you_mean(task, tasks)}; "
                    f"there are: {', '.join(tasks)}"
                )
        if self.weights and "weight" not in merge_methods.registered_merges()[self.method].parameters:
            raise ValueError(f"merges: {self.name}: weights: {self.method} takes no weights")


class MergeSettings(Settings):
    """Of `merge_specialists`."""

    merge: MergeSpec
    tasks: list[str]
    """The tasks of the specialists, in order."""

    @property
    def name(self) -> str:
        """The merged model's name in the leaderboard."""
        return self.merge.name
