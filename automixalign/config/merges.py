"""Merges of the specialists: their section of an experiment, and the settings of `merge_specialists`."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from automixalign.config.settings import Loading, Precision, Settings
from automixalign.method import merge_methods
from automixalign.method.losses import Loss
from automixalign.system.schema import Count, Name, Number, Positive, Schema, did_you_mean


class MergeSpec(Schema):
    """One way to merge the specialists, by mergekit's name and parameters."""

    method: str
    """The merge method, by mergekit's name."""
    name: Name = ""
    """Its name in the leaderboard; by default the method."""
    parameters: dict[str, Number] = Field(default_factory=dict)
    """Values of mergekit's parameters that differ from the method's defaults."""
    weights: dict[str, Positive] | Literal["tuned"] = Field(default_factory=dict)
    """Task -> mergekit's `weight` of its specialist. The others take the `weight` of `parameters`. `tuned`
    searches the weights with the smallest worst gap on the validation split, from equal weights."""
    tries: Count | None = None
    """The largest number of merges that `weights: tuned` makes and scores; by default 20."""

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

    @property
    def is_tuned(self) -> bool:
        """Whether its weights are searched."""
        return self.weights == "tuned"

    def check(self, tasks: Sequence[str]) -> None:
        """Raise ValueError unless the method can merge the specialists of these tasks."""
        if self.tries is not None and not self.is_tuned:
            raise ValueError(f"merges: {self.name}: 'tries' goes with 'weights: tuned'")
        try:
            merge_methods.check(self.method, len(tasks), self.parameters)
        except ValueError as error:
            raise ValueError(f"merges: {self.name}: {error}") from error
        for task in () if self.is_tuned else self.weights:
            if task not in tasks:
                raise ValueError(
                    f"merges: {self.name}: weights: there is no task {task!r}{did_you_mean(task, tasks)}; "
                    f"there are: {', '.join(tasks)}"
                )
        if self.weights and "weight" not in merge_methods.registered_merges()[self.method].parameters:
            raise ValueError(f"merges: {self.name}: weights: {self.method} takes no weights")


class Tuning(Schema):
    """How the weights of a merge are searched."""

    tries: int = 20
    batch_size: int
    precision: Precision
    loading: Loading = Loading()
    loss: Loss


class MergeSettings(Settings):
    """Of `merge_specialists`."""

    merge: MergeSpec
    tasks: list[str]
    """The tasks of the specialists, in order."""
    tuning: Tuning | None = None
    """None for a merge whose weights are given."""

    @property
    def name(self) -> str:
        """The merged model's name in the leaderboard."""
        return self.merge.name
