"""Tasks and splits: their section of an experiment, and the settings of `prepare_data`."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from automixalign.config.settings import Settings
from automixalign.quickstart.spec import synthetic_name
from automixalign.quickstart.synthetic import SYNTHETIC_TASKS
from automixalign.system.schema import Count, Name, Number, Schema, Text


class TaskSpec(Schema):
    """One task: where its preference pairs come from, and how its answers can be verified."""

    name: Name
    """Its name in the leaderboard and in file names."""
    source: Text
    """JSONL or Parquet file, folder, `s3://` URI, hub id, or `synthetic:NAME`."""
    hub_split: Text = "train"
    """The split to read of a data set on the hub."""
    limit: Count | None = None
    """The largest number of pairs; the seed draws them. For a synthetic task, the number of pairs to make."""
    label_noise: Annotated[Number, Field(ge=0, le=0.5)] = 0.0
    """Share of the *training* pairs whose sides are swapped, to study robustness."""
    verifier: Text | None = None
    """Decides whether a generated answer passes, by the row's `answer`: `exact`, `contains`, `number` or one of
    an installed package. Without a verifier, no answers are generated."""

    @model_validator(mode="after")
    def _check_synthetic_source(self) -> Self:
        if (name := synthetic_name(self.source)) is not None:
            if name not in SYNTHETIC_TASKS:
                raise ValueError(f"unknown synthetic task {name!r}; there are: {', '.join(SYNTHETIC_TASKS)}")
            if self.limit is None:
                raise ValueError("a synthetic task needs 'limit': how many pairs to make")
            if self.limit > SYNTHETIC_TASKS[name].prompts:
                raise ValueError(f"'limit': there are only {SYNTHETIC_TASKS[name].prompts} prompts of {name!r}")
        return self


class SplitSpec(Schema):
    """Shares of a task's pairs, split by prompt. The caps limit the cost of scoring."""

    validation: Annotated[Number, Field(ge=0, lt=1)] = 0.1
    """Share of the pairs held out of training, beside `test`, to see whether a specialist memorises."""
    test: Annotated[Number, Field(gt=0, lt=1)] = 0.1
    """Share of the pairs that every model is evaluated on."""
    max_train: Count | None = None
    """The largest number of training pairs of a task."""
    max_validation: Count | None = None
    """The largest number of validation pairs of a task."""
    max_test: Count | None = None
    """The largest number of test pairs of a task."""

    @model_validator(mode="after")
    def _check_training_share(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError("'validation' + 'test' must stay below 1")
        return self


class DataSettings(Settings):
    """Of `prepare_data`."""

    tasks: list[TaskSpec]
    split: SplitSpec
    max_length: int
    fingerprints: list[str]
    """Of the content of each task's source, in the order of the tasks."""
