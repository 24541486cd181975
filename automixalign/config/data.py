"""Tasks, their sources and splits: their sections of an experiment, and the settings of `prepare_data`."""

import datetime
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from automixalign.config.settings import PluginSpec, Settings, shorthand
from automixalign.quickstart.spec import synthetic_name
from automixalign.quickstart.synthetic import SYNTHETIC_TASKS
from automixalign.system.schema import Count, Name, Number, Positive, Schema, Text, did_you_mean

LongAnswers = Literal["drop", "cut"]
Scalar = StrictBool | StrictInt | StrictFloat | StrictStr


class AtLeast(Schema):
    """A condition on a number."""

    min: Number
    """The smallest value that passes."""


class FormatSpec(PluginSpec):
    """A row format and its options."""

    name: Name
    """`trl`, or another format that docs/data.md lists."""


class VerifierSpec(PluginSpec):
    """Decides whether a generated answer passes."""

    name: Text
    """`exact`, or another verifier that docs/data.md lists, or one of an installed package."""


class LocationSpec(Schema):
    """Where rows lie."""

    path: Text
    """File or folder, `s3://` URI, hub id, or `synthetic:NAME`."""
    subset: Text | None = None
    """The configuration of a data set on the hub, or one that `README.md` of a folder lists."""
    data_dir: Text | None = None
    """The folder to read inside a data set or a folder."""
    split: Text | None = None
    """The split to read; by default `train`. The names of files tell their splits."""
    revision: Text | None = None
    """Branch, tag or commit of a data set on the hub."""


class DecontaminationSpec(LocationSpec):
    """A test set of others, in any layout."""

    columns: Annotated[list[Text], Field(min_length=1)] | None = None
    """The columns whose texts count; by default all."""


class SourceSpec(LocationSpec):
    """One place that a task's pairs come from."""

    format: Annotated[FormatSpec, shorthand("name")] | None = None
    """How its rows are laid out: a row format (`trl` by default), or `{name: FORMAT, OPTION: VALUE}`."""
    columns: dict[Text, Text] | None = None
    """Field of the format -> column of the source that holds it. Without `format`, the fields are `prompt`,
    `chosen`, `rejected`, `system` and `answer`, and texts become chat messages."""
    where: dict[Text, Scalar | Annotated[list[Scalar], Field(min_length=1)] | AtLeast] = Field(
        default_factory=dict
    )
    """Column -> the value that a row must have, a list of such values, or `{min: NUMBER}`. Other rows are left
    out."""
    limit: Count | None = None
    """The largest number of usable pairs of this source; the seed draws them."""
    weight: Positive | None = None
    """Its share of the task's pairs, relative to the weights of the other sources. The seed draws the largest
    number of pairs in these proportions. Give a weight to every source of a task, or to none."""

    @property
    def format_spec(self) -> FormatSpec:
        """The format that reads the rows."""
        return self.format or FormatSpec(name="trl" if self.columns is None else "chat")


class TaskSpec(Schema):
    """One task: where its preference pairs come from, and how its answers can be verified."""

    name: Name
    """Its name in the leaderboard and in file names."""
    sources: Annotated[list[Annotated[SourceSpec, shorthand("path")]], Field(min_length=1)]
    """Where its pairs come from. `source: X` stands for one source; a bare text is its `path`."""
    limit: Count | None = None
    """The largest number of pairs; the seed draws them. For a synthetic task, the number of pairs to make."""
    label_noise: Annotated[Number, Field(ge=0, le=0.5)] = 0.0
    """Share of the *training* pairs whose sides are swapped, to study robustness."""
    verifier: Annotated[VerifierSpec, shorthand("name")] | None = None
    """Decides whether a generated answer passes: a verifier, or `{name: VERIFIER, OPTION: VALUE}`. Without a
    verifier, no answer is verified."""

    @classmethod
    def known_keys(cls, data: Any) -> list[str]:
        """Its keys, and `source`."""
        return [*cls.model_fields, "source"]

    @model_validator(mode="before")
    @classmethod
    def _read_one_source(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or "source" not in data:
            return data
        if "sources" in data:
            raise ValueError("give either 'source' or 'sources'")
        return {("sources" if key == "source" else key): value for key, value in data.items()} | {
            "sources": [data["source"]]
        }

    @model_validator(mode="after")
    def _check_sources(self) -> Self:
        if len({source.weight is None for source in self.sources}) > 1:
            raise ValueError("'weight': give one to every source of the task, or to none")
        for source in self.sources:
            if (name := synthetic_name(source.path)) is not None:
                self._check_synthetic(name, source)
        return self

    def _check_synthetic(self, name: str, source: SourceSpec) -> None:
        if name not in SYNTHETIC_TASKS:
            hint = did_you_mean(name, SYNTHETIC_TASKS)
            raise ValueError(f"unknown synthetic task {name!r}{hint}; there are: {', '.join(SYNTHETIC_TASKS)}")
        rows = self.generated_rows(source)
        if rows is None:
            raise ValueError("a synthetic task needs 'limit': how many pairs to make")
        if rows > SYNTHETIC_TASKS[name].prompts:
            raise ValueError(f"'limit': there are only {SYNTHETIC_TASKS[name].prompts} prompts of {name!r}")

    def generated_rows(self, source: SourceSpec) -> int | None:
        """How many rows to make of a synthetic source."""
        return self.limit if source.limit is None else source.limit

    @property
    def synthetic_tasks(self) -> list[str]:
        """The synthetic tasks among the sources."""
        names = (synthetic_name(source.path) for source in self.sources)
        return [name for name in names if name is not None]

    @property
    def source_names(self) -> str:
        """The paths of the sources, for messages and tables."""
        return ", ".join(source.path for source in self.sources)


class SplitSpec(Schema):
    """Shares of a task's pairs, split by prompt. The caps limit the cost of scoring."""

    validation: Annotated[Number, Field(ge=0, lt=1)] = 0.1
    """Share of the pairs held out of training, beside `test`, to choose among the models and to see whether a
    specialist memorises. With 0, no model is chosen."""
    test: Annotated[Number, Field(gt=0, lt=1)] = 0.1
    """Share of the pairs that the results are reported on. They have no part in any choice."""
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
    long_answers: LongAnswers = "drop"
    date: datetime.date | None = None
    near_duplicates: float | None = None
    decontaminate: list[DecontaminationSpec] = Field(default_factory=list)
    fingerprints: list[str]
    """Of the content of each task's sources, in the order of the tasks, then of `decontaminate`."""
