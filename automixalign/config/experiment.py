"""One experiment as data: the schema of a configuration file, checked before any work starts.

A preset is a YAML file of this schema; `ama validate` prints the resolved one. Every refusal names its key.
"""

import datetime
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from automixalign.config.cluster import SCORING, TRAINING, ClusterSpec
from automixalign.config.data import DecontaminationSpec, LongAnswers, SplitSpec, TaskSpec
from automixalign.config.evaluation import BenchmarkSpec, EvaluationSpec
from automixalign.config.merges import MergeSpec
from automixalign.config.methods import Methods
from automixalign.config.models import BaseModelSpec
from automixalign.config.plugins import Plugin
from automixalign.config.release import OutputSpec, RegistrySpec, TrackingSpec
from automixalign.config.settings import AttnImplementation, Loading, Settings, shorthand
from automixalign.config.training import BudgetSpec, SpecialistLossesSpec, TrainingSpec, specialist_name
from automixalign.quickstart.spec import TINY_POSITIONS
from automixalign.system.errors import ConfigError
from automixalign.system.schema import Count, Name, Natural, Number, Schema, describe

RESERVED = ("reference", "specialist")
"""Names that the leaderboard keeps for the reference model and the specialists."""


class Experiment(Schema):
    """Everything that determines a run. The same experiment gives the same numbers on the same machine."""

    name: Name
    """Names the run folder and the run in MLflow."""
    seed: Natural = 0
    """The seed of all random choices."""
    plugins: list[Plugin] = Field(default_factory=list)
    """Modules that register further mixers, merges, verifiers, row formats or metrics. The stages that use one
    of these import them (docs/extending.md)."""
    base_model: Annotated[BaseModelSpec, shorthand("source")]
    tasks: list[TaskSpec]
    max_length: Annotated[Count, Field(ge=8)] = 1024
    """The largest number of tokens of a prompt and an answer together. A pair whose prompt leaves no room for
    an answer is dropped."""
    long_answers: LongAnswers = "drop"
    """What becomes of a pair with an answer that ends after `max_length`: `drop`, or `cut`, which trains on the
    beginning of the answer."""
    date: datetime.date | None = None
    """The date for chat templates that ask for today's, such as Llama 3's; without it, they get today's."""
    near_duplicates: Annotated[Number, Field(gt=0, le=1)] | None = None
    """Prompts at least this similar go to one split: the Jaccard similarity of their sets of three consecutive
    words, by MinHash. 0.8 finds prompts that differ in a few words. By default only equal prompts do."""
    decontaminate: list[Annotated[DecontaminationSpec, shorthand("path")]] = Field(default_factory=list)
    """Test sets of others. A pair is dropped if its prompt shares 13 words in a row with one of their texts."""
    attn_implementation: AttnImplementation = "auto"
    """How attention is computed, in training and scoring alike. `auto` packs the pairs on CPUs; on GPUs it is
    `sdpa`, which pads them. `flash_attention_2` needs the package flash-attn, a GPU and bf16. `flex_attention`
    packs the pairs on GPUs, too (docs/gpu.md)."""
    split: SplitSpec = SplitSpec()
    training: TrainingSpec
    budget: BudgetSpec
    specialist_losses: SpecialistLossesSpec = SpecialistLossesSpec()
    methods: Methods
    merges: list[Annotated[MergeSpec, shorthand("method")]] = Field(default_factory=list)
    evaluation: EvaluationSpec = EvaluationSpec()
    benchmarks: list[Annotated[BenchmarkSpec, shorthand("task")]] = Field(default_factory=list)
    """Tasks of lm-evaluation-harness that the reference model, the generalists and the merges solve."""
    tracking: TrackingSpec = TrackingSpec()
    registry: RegistrySpec | None = None
    output: Annotated[OutputSpec, shorthand("to")] | None = None
    cluster: ClusterSpec = ClusterSpec()

    @property
    def parts(self) -> list[str]:
        """The optional parts of the DAG that this experiment has."""
        parts = {
            "adapters": self.training.lora,
            "generalists": any(method.init is None for method in self.methods),
            "merges": self.merges,
            "tuned merges": any(merge.is_tuned for merge in self.merges),
            "warm starts": self.starts,
            "benchmarks": self.benchmarks,
            "answers": any(self.evaluation.answers(task.verifier is not None) for task in self.tasks),
            "cross-fitting": self.specialist_losses.cross_fit,
            "judge": self.evaluation.compares_with_reference,
            "registry": self.registry,
            "output": self.output,
        }
        return [part for part, present in parts.items() if present]

    @property
    def loading(self) -> Loading:
        """How the stages that score or train hold models in memory."""
        training, dtype = self.training, "fp32"
        # A validation in fp32 needs weights in fp32.
        in_fp32 = training.validate_every and self.evaluation.precision == "fp32"
        if training.fsdp:
            dtype = "bf16"
        elif (training.lora or training.trainable) and not in_fp32:
            dtype = "source"
        return Loading(
            attn_implementation=self.attn_implementation,
            max_length=self.max_length,
            dtype=dtype,
            trained=training.trainable or [] if dtype == "source" else [],
            quantize=training.lora.quantize if training.lora else None,
        )

    @property
    def starts(self) -> list[str]:
        """The merges from which generalists start."""
        return list(dict.fromkeys(method.init for method in self.methods if method.init))

    def without_delivery(self) -> Self:
        """The experiment without the sections that change no result: cluster, tracking, registry and output."""
        changes = {"cluster": ClusterSpec(), "tracking": TrackingSpec(), "registry": None, "output": None}
        return self.model_copy(update=changes)

    @property
    def identity(self) -> str:
        """Names the results of the experiment: equal for experiments that differ in their delivery alone."""
        content = self.without_delivery().model_dump_json()
        return f"{self.name} ({hashlib.sha256(content.encode()).hexdigest()[:12]})"

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if not self.tasks:
            raise ValueError("tasks: at least one is needed (on the command line: --task NAME=PATH)")
        _check_unique((task.name for task in self.tasks), "tasks")
        _check_unique((benchmark.name for benchmark in self.benchmarks), "benchmarks")
        names = [*(method.name for method in self.methods), *(merge.name for merge in self.merges)]
        _check_unique(names, "methods and merges")
        for name in names:
            if name.split("-")[0].lower() in RESERVED:
                raise ValueError(f"methods and merges: the name {name!r} is reserved")
        return self

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        tasks = [task.name for task in self.tasks]
        for method in self.methods:
            method.check(tasks, [merge.name for merge in self.merges], self.training.batch_size)
            if method.init is not None and self.loading.quantize:
                raise ValueError(
                    f"methods.{method.name}: init: a merge is not quantised, and its training would be; start "
                    "from the base model, or train without 'lora.quantize'"
                )
        for merge in self.merges:
            merge.check(tasks)
        if self.base_model.tiny is not None and self.max_length > TINY_POSITIONS:
            raise ValueError(f"max_length: {TINY_POSITIONS} at most with 'base_model: tiny'")
        return self

    @model_validator(mode="after")
    def _check_choice(self) -> Self:
        if any(method.of_grid for method in self.methods) and self.split.validation == 0:
            raise ValueError(
                "methods: a grid's point is chosen on the validation split; set split.validation above 0"
            )
        if self.registry is not None and self.split.validation == 0:
            raise ValueError(
                "registry: its model is chosen on the validation split; set split.validation above 0"
            )
        if self.training.validate_every and self.split.validation == 0:
            raise ValueError(
                "training.validate_every: it scores validation pairs; set split.validation above 0"
            )
        for merge in self.merges:
            if merge.is_tuned and self.split.validation == 0:
                raise ValueError(
                    f"merges: {merge.name}: weights: they are tuned on the validation split; set "
                    "split.validation above 0"
                )
        return self

    @model_validator(mode="after")
    def _check_attention(self) -> Self:
        for key in ("training", "evaluation"):
            if self.attn_implementation == "flash_attention_2" and getattr(self, key).precision == "fp32":
                raise ValueError(
                    f"attn_implementation: flash_attention_2 computes in bf16 only; set {key}.precision to "
                    "bf16 or auto, or use sdpa"
                )
        return self

    @model_validator(mode="after")
    def _check_machines(self) -> Self:
        training = [*TRAINING, "specialist_losses"] if self.specialist_losses.cross_fit else TRAINING
        for section, stages in (("training", training), ("evaluation", SCORING)):
            processes = getattr(self, section).processes
            for stage in stages:
                accelerators = self.cluster.pod(stage).accelerators
                if accelerators and accelerators != processes:
                    raise ValueError(
                        f"cluster: {stage} has {accelerators} accelerators for {section}.processes: "
                        f"{processes}; each process takes one"
                    )
        for stage in training:
            pod = self.cluster.pod(stage)
            if pod.accelerators > 1 and pod.shared_memory is None:
                raise ValueError(
                    f"cluster.steps.{stage}.shared_memory: its {pod.accelerators} processes exchange gradients "
                    "through /dev/shm, which has 64 MB in a pod; set it, for example to 16Gi"
                )
        if self.training.nodes > 1 and self.cluster.train_job is None:
            raise ValueError("training.nodes: several nodes need 'cluster.train_job'")
        if self.training.nodes > 1 and self.specialist_losses.cross_fit:
            raise ValueError("specialist_losses.cross_fit: its trainings run in one pod; set training.nodes: 1")
        sizes = {task.name: 1 for task in self.tasks}
        for method in self.methods:
            if self.training.fsdp and method.mixer(sizes, self.seed).gradients is not None:
                raise ValueError(
                    f"methods.{method.name}: it measures whole gradients, which 'training.fsdp' divides"
                )
        if self.training.fsdp and any(method.average_iterates for method in self.methods):
            raise ValueError(
                "methods: 'average_iterates' needs whole parameters, which 'training.fsdp' divides"
            )
        return self


class ComparisonSettings(Settings):
    """Of `compare`."""

    experiment: Experiment


class RegistrySettings(Settings):
    """Of `register`."""

    registry: RegistrySpec
    experiment: Experiment
    """Describes the version in its tags."""


def parse_experiment(data: Mapping[str, Any], origin: str) -> Experiment:
    """Check a configuration that came from `origin` (a file name, for the message).

    Raises:
        ConfigError: naming every key that is unknown, of a wrong type or impossible.
    """
    try:
        return Experiment.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{origin} cannot be run:\n{describe(error, Experiment, data)}") from error


def model_names(experiment: Experiment) -> Sequence[str]:
    """Every model of the leaderboard, in its order."""
    return [
        "reference",
        *(specialist_name(task.name) for task in experiment.tasks),
        *(method.name for method in experiment.methods),
        *(merge.name for merge in experiment.merges),
    ]


def _check_unique(names: Iterable[str], key: str) -> None:
    earlier: set[str] = set()
    for name in names:
        if name.lower() in earlier:
            raise ValueError(f"{key}: the name {name!r} is used twice")
        earlier.add(name.lower())
