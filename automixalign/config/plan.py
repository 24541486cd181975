"""What each step of the DAG is told: the part of the experiment that changes its result, and no more.

A step's settings travel as one JSON string. Two experiments that differ elsewhere give a step equal settings,
which is what lets its cached result stand: another eta re-trains one generalist and nothing before it.
"""

from collections.abc import Mapping
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from automixalign.config.cluster import ClusterSpec
from automixalign.config.experiment import (
    SYNTHETIC,
    BaseModelSpec,
    Budget,
    EvaluationSpec,
    Experiment,
    MergeSpec,
    MethodSpec,
    OutputSpec,
    Precision,
    SplitSpec,
    TaskSpec,
    TrainingSpec,
)
from automixalign.config.extensions import Extension, extensions_digest
from automixalign.method.losses import Loss
from automixalign.system.provenance import environment_digest, library_digest


class Settings(BaseModel):
    """Base of a step's settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    library: str = ""
    """Digest of the code that made the plan."""
    environment: str = ""
    """Digest of the versions under it, and of the variables that can change a result."""
    seed: int


class BaseModelSettings(Settings):
    """Of `prepare_base_model`."""

    base_model: BaseModelSpec
    synthetic_tasks: list[str]
    """The synthetic tasks whose forms a `tiny` model learns."""
    fingerprint: str
    """Changes with the content behind the source."""


class DataSettings(Settings):
    """Of `prepare_data`."""

    tasks: list[TaskSpec]
    split: SplitSpec
    max_length: int
    fingerprints: list[str]


class ScoringSettings(Settings):
    """Of `reference_logps`."""

    batch_size: int
    precision: Precision


class SpecialistLossesSettings(ScoringSettings):
    """Of `specialist_losses`."""

    loss: Loss
    warn_gap: float
    fold: "TrainingSettings | None"
    """How to train on one half of a task's pairs, where the losses are cross-fitted."""


class TrainingSettings(Settings):
    """Of `train_specialist` (where `method` is None) and `train_generalist`."""

    extensions: list[Extension] = Field(default_factory=list)
    """Imported before `method` is checked."""
    training: TrainingSpec
    budget: Budget
    method: MethodSpec | None

    @property
    def name(self) -> str:
        """The generalist's name in the leaderboard."""
        assert self.method is not None  # noqa: S101  a specialist is named by its task
        return self.method.name

    def for_a_half(self) -> Self:
        """The same number of passes over half of the pairs."""
        steps = self.budget.steps
        if steps is None:
            return self
        return self.model_copy(update={"budget": self.budget.model_copy(update={"steps": -(-steps // 2)})})


class MergeSettings(Settings):
    """Of `merge_specialists`."""

    merge: MergeSpec
    tasks: list[str]
    """The specialists, in their order."""

    @property
    def name(self) -> str:
        """The merged model's name in the leaderboard."""
        return self.merge.name


class EvaluationSettings(Settings):
    """Of `evaluate`."""

    evaluation: EvaluationSpec
    loss: Loss
    verifiers: dict[str, str]
    """Task -> verifier, for the tasks whose generations can be verified."""


class ComparisonSettings(Settings):
    """Of `compare`."""

    experiment: Experiment


class RegistrySettings(Settings):
    """Of `register`."""

    experiment: Experiment


class PublicationSettings(Settings):
    """Of `publish`."""

    output: OutputSpec | None
    run: str
    """Names the run in the manifest."""


class Plan(BaseModel):
    """The settings of every step of an experiment's DAG."""

    base_model: BaseModelSettings
    data: DataSettings
    scoring: ScoringSettings
    specialist: TrainingSettings
    specialist_losses: SpecialistLossesSettings
    tasks: list[str]
    generalists: list[TrainingSettings]
    merges: list[MergeSettings]
    evaluation: EvaluationSettings
    comparison: ComparisonSettings
    registry: RegistrySettings
    publication: PublicationSettings

    @classmethod
    def of(cls, experiment: Experiment, fingerprints: Mapping[str, str]) -> Self:
        """Divide an experiment among its steps.

        Args:
            experiment: the checked configuration.
            fingerprints: what stands for the content of each source: a task's name, or "base_model" -> digest.
        """
        common = {
            "library": library_digest(),
            "environment": environment_digest(),
            "seed": experiment.seed,
        }
        training, evaluation = experiment.training, experiment.evaluation
        tasks = [task.name for task in experiment.tasks]
        unplaced = experiment.model_copy(update={"cluster": ClusterSpec()})
        scoring = {**common, "batch_size": evaluation.batch_size, "precision": evaluation.precision}
        specialist = TrainingSettings(
            **common, training=training, budget=experiment.budget.specialist, method=None
        )
        synthetic = [
            task.source.removeprefix(SYNTHETIC)
            for task in experiment.tasks
            if task.source.startswith(SYNTHETIC)
        ]
        return cls(
            base_model=BaseModelSettings(
                **common,
                base_model=experiment.base_model,
                synthetic_tasks=synthetic,
                fingerprint=fingerprints["base_model"],
            ),
            data=DataSettings(
                **common,
                tasks=experiment.tasks,
                split=experiment.split,
                max_length=experiment.max_length,
                fingerprints=[fingerprints[task.name] for task in experiment.tasks],
            ),
            scoring=ScoringSettings(**scoring),
            specialist=specialist,
            specialist_losses=SpecialistLossesSettings(
                **scoring,
                loss=training.loss,
                warn_gap=experiment.specialist_losses.warn_gap,
                fold=specialist.for_a_half() if experiment.specialist_losses.cross_fit else None,
            ),
            tasks=tasks,
            generalists=[
                TrainingSettings(
                    **{**common, "library": library_digest() + extensions_digest(experiment.extensions)},
                    extensions=experiment.extensions,
                    training=training,
                    budget=experiment.budget.generalist,
                    method=method,
                )
                for method in experiment.methods
            ],
            merges=[MergeSettings(**common, merge=merge, tasks=tasks) for merge in experiment.merges],
            evaluation=EvaluationSettings(
                **common,
                evaluation=evaluation,
                loss=training.loss,
                verifiers={task.name: task.verifier for task in experiment.tasks if task.verifier},
            ),
            comparison=ComparisonSettings(**common, experiment=unplaced),
            registry=RegistrySettings(**common, experiment=unplaced),
            publication=PublicationSettings(**common, output=experiment.output, run=experiment.name),
        )

    def as_outputs(self) -> tuple[str | list[str], ...]:
        """The plan as a component returns it: settings as JSON text, in the order of the fields."""
        return tuple(
            value.model_dump_json()
            if isinstance(value, Settings)
            else [item if isinstance(item, str) else item.model_dump_json() for item in value]
            for _, value in self
        )
