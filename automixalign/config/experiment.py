"""One experiment as data: the schema of a configuration file, checked before any work starts.

A preset is a YAML file of this schema; `ama validate` prints the resolved one. Every refusal names its key.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from automixalign.config.cluster import TRAINING, ClusterSpec
from automixalign.config.extensions import Extension
from automixalign.method import merge_methods
from automixalign.method.losses import Loss
from automixalign.method.mixer import registered_mixers
from automixalign.quickstart.spec import TINY_POSITIONS, TinyModel
from automixalign.quickstart.synthetic import SYNTHETIC_TASKS
from automixalign.system.errors import ConfigError
from automixalign.system.schema import (
    Count,
    Flag,
    Fraction,
    Name,
    Natural,
    NonNegative,
    Number,
    Positive,
    PositiveFraction,
    Schema,
    Text,
    describe,
)

SYNTHETIC = "synthetic:"
"""Prefix of a task source that is generated from the seed: `synthetic:arithmetic`."""

RESERVED = ("reference", "specialist")
"""A model of the leaderboard may not be called so: these are the reference and the specialists."""


def _named(key: str) -> BeforeValidator:
    """Let a bare string stand for `{key: string}`: `- standard` is `- method: standard`."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


Precision = Literal["auto", "fp32", "bf16"]


class BaseModelSpec(Schema):
    """The policy every specialist and generalist starts from; it is also the reference model."""

    source: Text
    """Folder, GGUF file, `package:MODULE/FILE.gguf`, hub id, `s3://` or `models:/` URI, or `tiny`."""
    revision: Text | None = None
    tiny: TinyModel | None = None

    @model_validator(mode="after")
    def _tiny_belongs_to_its_source(self) -> Self:
        if (self.tiny is not None) != (self.source == "tiny"):
            raise ValueError("the key 'tiny' goes with 'source: tiny', and only with it")
        return self


class TaskSpec(Schema):
    """One task: where its preference pairs come from and how its answers can be verified."""

    name: Name
    source: Text
    """JSONL or Parquet file, folder, `s3://` URI, hub id, or `synthetic:NAME`."""
    hub_split: Text = "train"
    limit: Count | None = None
    """At most so many pairs, drawn by the seed; for a synthetic task, how many are made."""
    label_noise: Annotated[Number, Field(ge=0, le=0.5)] = 0.0
    """Share of the *training* pairs whose sides are swapped, to study robustness."""
    verifier: Text | None = None
    """Decides whether a generated answer passes, by the row's `answer`: `exact`, `contains`, `number` or one of
    an installed package. Without a verifier, no answers are generated."""

    @model_validator(mode="after")
    def _synthetic_is_known(self) -> Self:
        if self.source.startswith(SYNTHETIC):
            name = self.source.removeprefix(SYNTHETIC)
            if name not in SYNTHETIC_TASKS:
                raise ValueError(f"unknown synthetic task {name!r}; there are: {', '.join(SYNTHETIC_TASKS)}")
            if self.limit is None:
                raise ValueError("a synthetic task needs 'limit': how many pairs to make")
            if self.limit > SYNTHETIC_TASKS[name].prompts:
                raise ValueError(f"'limit': there are only {SYNTHETIC_TASKS[name].prompts} prompts of {name!r}")
        return self


class SplitSpec(Schema):
    """Shares of a task's pairs, split by prompt; the caps keep the cost of scoring in hand."""

    validation: Annotated[Number, Field(ge=0, lt=1)] = 0.1
    test: Annotated[Number, Field(gt=0, lt=1)] = 0.1
    max_train: Count | None = None
    max_validation: Count | None = None
    max_test: Count | None = None

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError("'validation' + 'test' must stay below 1")
        return self


class LoraSpec(Schema):
    """LoRA (arXiv 2106.09685) through peft."""

    rank: Annotated[Count, Field(le=8192)] = 16
    alpha: Positive = 32.0
    target_modules: Annotated[list[str], Field(min_length=1)] | Literal["all-linear"] = "all-linear"


class Budget(Schema):
    """How long to train: optimiser steps, or epochs over the phase's training pairs."""

    steps: Count | None = None
    epochs: Annotated[Positive, Field(le=10_000)] | None = None
    learning_rate: Positive | None = None
    """Replaces `training.learning_rate` for this phase."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of 'steps' and 'epochs'")
        return self


class BudgetSpec(Schema):
    """How long the two phases train; every generalist gets the same."""

    specialist: Budget
    generalist: Budget


class TrainingSpec(Loss):
    """What every training of the experiment shares, so that methods are compared fairly."""

    batch_size: Annotated[Count, Field(le=2**20)]
    """Pairs an optimiser step, over all ranks and accumulation micro-steps."""
    micro_batch_size: Count | None = None
    """Pairs a forward pass of a process; what is left of `batch_size` is gradient accumulation."""
    processes: Annotated[Count, Field(le=256)] = 1
    """Processes on one machine that share every step, each with a slice of its pairs: one a GPU."""
    nodes: Count = 1
    """Machines with so many processes each; more than one are Kubeflow Trainer's (`cluster.train_job`)."""
    fsdp: Flag = False
    """Divide parameters, gradients and optimiser state among the processes (FSDP2, arXiv 2304.11277), for a
    model that does not fit one GPU; else each process holds all of them."""
    learning_rate: Positive
    lr_scheduler: Literal["constant", "linear", "cosine"] = "linear"
    warmup_steps: Natural = 0
    weight_decay: NonNegative = 0.0
    max_grad_norm: NonNegative = 1.0
    nll_weight: NonNegative = 0.0
    """Weight of TRL's `sft` term on the chosen answer, the same for every method: a mean over the tokens of a
    step, however it is cut into forward passes. 0 is plain DPO; with .1 to .5, small models passed 1.4 to 3
    times as many generations on both setups where it was tried, and the presets for them take .2
    (benchmarks/results/quality.md)."""
    precision: Precision = "auto"
    """`auto`: bf16 autocast on CUDA that has it, else fp32. CPUs without AMX take longer in bf16, those without
    AVX512-BF16 tens of times as long."""
    gradient_checkpointing: Flag = False
    lora: LoraSpec | None = None
    trainable: Annotated[list[str], Field(min_length=1)] | None = None
    """Full fine-tuning of only the parameters whose name one of these regular expressions finds."""
    checkpoint_every: Natural = 50
    """Steps between checkpoints, where a run keeps any (see `checkpoints.py`); 0 for none."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.lora is not None and self.trainable is not None:
            raise ValueError("'lora' and 'trainable' exclude each other")
        if self.batch_size % (self.micro_batch_size or 1):
            raise ValueError("'batch_size' must be a multiple of 'micro_batch_size'")
        if self.batch_size % ((self.micro_batch_size or 1) * self.nodes * self.processes):
            raise ValueError(
                "'batch_size' must be a multiple of 'processes' times 'micro_batch_size', times 'nodes'"
            )
        if self.fsdp and self.nodes * self.processes == 1:
            raise ValueError("'fsdp' divides a model among 'processes', and there is one")
        for pattern in self.trainable or []:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"'trainable': {pattern!r} is no regular expression: {error}") from error
        return self

    @property
    def loss(self) -> Loss:
        """The preference loss alone."""
        return Loss(**{key: getattr(self, key) for key in Loss.model_fields})


class SpecialistLossesSpec(Schema):
    """The losses that a generalist's excess is counted from."""

    cross_fit: Flag = False
    """Two-fold cross-fitting: score each half of a task's training pairs by a specialist that was trained on
    the other half only. Specialists then cost twice as much; use it where they memorise their pairs."""
    warn_gap: Positive = 0.1
    """Warn where a task's mean held-out loss lies more than this (in nats) above that of its training pairs."""


class MethodSpec(Schema):
    """One way to train the generalist; every further key is an option of its mixer (`eta`, `c`, ...)."""

    model_config = ConfigDict(extra="allow")

    method: str
    name: Name = ""
    """Its name in the leaderboard; the method's own unless two entries share a method."""
    average_iterates: PositiveFraction | None = None
    """The generalist is the mean of the policies after the steps of this last share of its training: 1 is all
    of them. A LoRA adapter's matrices are averaged each for itself."""

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, data: Any) -> Any:
        return {"name": data.get("method"), **data} if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _the_mixer_accepts_it(self) -> Self:
        mixers = registered_mixers()
        if self.method not in mixers:
            raise ValueError(f"unknown method {self.method!r}; there are: {', '.join(mixers)}")
        checked = mixers[self.method].schema.model_validate(self.options)
        self.options.update(checked.model_dump(exclude_unset=True))
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The mixer's options that were set."""
        assert self.model_extra is not None  # noqa: S101  further keys are allowed
        return self.model_extra


class MergeSpec(Schema):
    """One way to merge the specialists, by mergekit's name and parameters."""

    method: str
    name: Name = ""
    parameters: dict[str, Number] = Field(default_factory=dict)
    weights: dict[str, Positive] = Field(default_factory=dict)
    """Task -> mergekit's `weight` of its specialist, where it is another than that of `parameters`."""

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, data: Any) -> Any:
        return {"name": data.get("method"), **data} if isinstance(data, Mapping) else data


class EvaluationSpec(Schema):
    """What is measured on the held-out test split, for every model alike."""

    batch_size: Count = 32
    """Sequences a forward pass when log-probabilities are computed."""
    precision: Precision = "fp32"
    """Of all scoring: reference log-probabilities, specialist losses, evaluation."""
    generate: Flag = True
    max_new_tokens: Count = 64
    max_prompts: Count | None = None
    """At most so many greedy generations a task."""


def holds_credentials(uri: str) -> bool:
    """Whether a URI names a user, as in `https://user:password@host`."""
    return "@" in urlsplit(uri).netloc


class TrackingSpec(Schema):
    """MLflow: where the run's parameters, curves, leaderboard and plots go.

    On a cluster the environment says so (MLFLOW_TRACKING_URI, and MLFLOW_RUN_ID of a run to join), not this.
    """

    uri: Text | None = None
    """A server or a store; by default a SQLite store in the run folder. Credentials belong in the environment
    (MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD or MLFLOW_TRACKING_TOKEN)."""
    experiment: Text = "automixalign"

    @model_validator(mode="after")
    def _no_secrets(self) -> Self:
        if self.uri and holds_credentials(self.uri):
            raise ValueError("'uri' holds a user or password; name them in the environment instead")
        return self


class OutputSpec(Schema):
    """Where the final models, the leaderboard and the report are copied to when the run has ended well."""

    to: Text
    """`s3://bucket/prefix` or a folder, for this run alone. Access comes from boto3's credential chain."""
    replace: Flag = False
    """Replace what another run published there."""


class RegistrySpec(Schema):
    """MLflow's model registry, and the gate in front of its champion."""

    name: Annotated[str, StringConstraints(pattern=r"^[^/:@\s]{1,200}$")]
    """The registered model. The best generalist or merge, by worst-task excess, becomes its next version."""
    max_worst_excess: NonNegative | None = None
    """The gate: not above this."""
    min_accuracy: Fraction | None = None
    """The gate: reward accuracy, mean over the tasks, not below this."""
    beat_champion: Flag = True
    """The gate: worst-task excess not above the champion's, measured on the same data."""


def _unique(items: Iterable[str], where: str) -> None:
    seen: set[str] = set()
    for item in items:
        if item.lower() in seen:
            raise ValueError(f"{where}: the name {item!r} is used twice")
        seen.add(item.lower())


class Experiment(Schema):
    """Everything that determines a run. The same experiment gives the same numbers on the same machine."""

    name: Name
    seed: Natural = 0
    extensions: list[Extension] = Field(default_factory=list)
    """Modules that register further methods; imported in every process of the run."""
    base_model: Annotated[BaseModelSpec, _named("source")]
    tasks: list[TaskSpec]
    max_length: Annotated[Count, Field(ge=8)] = 1024
    """Tokens of prompt and answer; longer answers are cut, prompts that fill it are dropped."""
    split: SplitSpec = SplitSpec()
    training: TrainingSpec
    budget: BudgetSpec
    specialist_losses: SpecialistLossesSpec = SpecialistLossesSpec()
    methods: Annotated[list[Annotated[MethodSpec, _named("method")]], Field(min_length=1)]
    merges: list[Annotated[MergeSpec, _named("method")]] = Field(default_factory=list)
    evaluation: EvaluationSpec = EvaluationSpec()
    tracking: TrackingSpec = TrackingSpec()
    registry: RegistrySpec | None = None
    output: Annotated[OutputSpec, _named("to")] | None = None
    cluster: ClusterSpec = ClusterSpec()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.tasks:
            raise ValueError("tasks: at least one is needed (on the command line: --task NAME=PATH)")
        _unique((task.name for task in self.tasks), "tasks")
        names = [*(method.name for method in self.methods), *(merge.name for merge in self.merges)]
        _unique(names, "methods and merges")
        for name in names:
            if name.split("-")[0].lower() in RESERVED:
                raise ValueError(f"methods and merges: the name {name!r} is reserved")
        for method in self.methods:
            if registered_mixers()[method.method].every_task_each_step:
                self._check_share_of_every_task(method)
        for merge in self.merges:
            try:
                merge_methods.check(merge.method, len(self.tasks), merge.parameters)
            except ValueError as error:
                raise ValueError(f"merges: {merge.name}: {error}") from error
            self._check_merge_weights(merge)
        if self.base_model.tiny is not None and self.max_length > TINY_POSITIONS:
            raise ValueError(f"max_length: {TINY_POSITIONS} at most with 'base_model: tiny'")
        self._check_an_accelerator_for_each_process()
        self._check_what_cannot_go_together()
        return self

    def _check_what_cannot_go_together(self) -> None:
        if self.training.nodes > 1 and self.cluster.train_job is None:
            raise ValueError("training.nodes: more than one need 'cluster.train_job'")
        if self.training.nodes > 1 and self.specialist_losses.cross_fit:
            raise ValueError("specialist_losses.cross_fit: its trainings run in one pod; set training.nodes: 1")
        if self.training.fsdp and any(method.average_iterates for method in self.methods):
            raise ValueError(
                "methods: 'average_iterates' needs whole parameters, which 'training.fsdp' divides"
            )

    def _check_merge_weights(self, merge: MergeSpec) -> None:
        tasks = [task.name for task in self.tasks]
        for task in merge.weights:
            if task not in tasks:
                raise ValueError(
                    f"merges: {merge.name}: weights: there is no task {task!r}; there are: {', '.join(tasks)}"
                )
        if merge.weights and "weight" not in merge_methods.MERGE_METHODS[merge.method].parameters:
            raise ValueError(f"merges: {merge.name}: weights: {merge.method} takes no weights")

    @property
    def parts(self) -> list[str]:
        """The parts of the DAG that this experiment has and another may not have."""
        return [part for part in ("merges", "registry", "output") if getattr(self, part)]

    def _check_an_accelerator_for_each_process(self) -> None:
        steps = [*TRAINING, "specialist_losses"] if self.specialist_losses.cross_fit else TRAINING
        for step in steps:
            accelerators = self.cluster.pod(step).accelerators
            if accelerators and accelerators != self.training.processes:
                raise ValueError(
                    f"cluster: {step} has {accelerators} accelerators for training.processes: "
                    f"{self.training.processes}; each process takes one"
                )

    def _check_share_of_every_task(self, method: MethodSpec) -> None:
        if self.training.batch_size < len(self.tasks):
            raise ValueError(
                f"training.batch_size: {method.name} holds pairs of every task in each step, so it must "
                f"be at least the number of tasks, {len(self.tasks)}; it is {self.training.batch_size}"
            )


def parse_experiment(data: Mapping[str, Any], origin: str) -> Experiment:
    """Check a configuration that came from `origin` (a file name, for the message).

    Raises:
        ConfigError: naming every key that is unknown, of a wrong type or impossible.
    """
    try:
        return Experiment.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{origin} cannot be run:\n{describe(error)}") from error


def specialist_name(task: str) -> str:
    """The specialist of a task, as the leaderboard calls it."""
    return f"specialist-{task}"


def model_names(experiment: Experiment) -> Sequence[str]:
    """Every model of the leaderboard, in its order."""
    return [
        "reference",
        *(specialist_name(task.name) for task in experiment.tasks),
        *(method.name for method in experiment.methods),
        *(merge.name for merge in experiment.merges),
    ]
