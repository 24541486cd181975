"""The settings of every stage of an experiment's DAG."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from pydantic import BaseModel

from automixalign.config.cluster import Stage
from automixalign.config.data import DataSettings
from automixalign.config.evaluation import BenchmarkSettings, EvaluationSettings, ScoringSettings
from automixalign.config.experiment import ComparisonSettings, Experiment, RegistrySettings
from automixalign.config.merges import MergeSettings, Tuning
from automixalign.config.methods import GeneralistSettings
from automixalign.config.models import BaseModelSettings
from automixalign.config.release import PublicationSettings
from automixalign.config.settings import Settings
from automixalign.config.training import SpecialistLossesSettings, SpecialistSettings
from automixalign.system.plugins import Kind, outside_modules
from automixalign.system.provenance import code_digest, environment_digest

_TRAINING = ("automixalign.training.launch", "automixalign.training.nodes.node")
_VERIFIERS = "automixalign.scoring.verifiers.*"
_METRICS = "automixalign.scoring.metrics.*"

MODULES: Mapping[Stage, Sequence[str]] = {
    "prepare_base_model": (
        "automixalign.config.models",
        "automixalign.models.prepare",
        "automixalign.models.tokenizer",
    ),
    "prepare_data": (
        "automixalign.config.data",
        "automixalign.data.prepare",
        "automixalign.data.row_formats.*",
        "automixalign.models.load",
        _VERIFIERS,
    ),
    "reference_logps": ("automixalign.config.evaluation", "automixalign.scoring.reference_logps"),
    "train_specialist": ("automixalign.config.training", "automixalign.training.specialist", *_TRAINING),
    "specialist_losses": (
        "automixalign.config.training",
        "automixalign.training.specialist_losses",
        *_TRAINING,
    ),
    "train_generalist": (
        "automixalign.config.methods",
        "automixalign.method.baselines.*",
        "automixalign.training.generalist",
        *_TRAINING,
    ),
    "merge_specialists": ("automixalign.config.merges", "automixalign.merging.tuning"),
    "evaluate": ("automixalign.config.evaluation", "automixalign.scoring.evaluate", _VERIFIERS, _METRICS),
    "benchmark": ("automixalign.config.evaluation", "automixalign.scoring.benchmarks.run"),
    "compare": ("automixalign.config.experiment", "automixalign.report.compare", _METRICS),
    "register": ("automixalign.config.experiment", "automixalign.release.register", _METRICS),
    "publish": ("automixalign.config.release", "automixalign.release.publish"),
}
"""What the component of each stage imports, and modules that are started or found by name."""
DECONTAMINATE = "decontaminate:"
"""Names the fingerprint of the sources of `decontaminate`; no task has a colon in its name."""
BENCHMARKS = "benchmarks:"
"""Names the fingerprint of the benchmarks."""
_RUN_STEP = "automixalign.steps.step"
_NUMERIC_MODULES = [
    module
    for stage, modules in MODULES.items()
    if stage not in ("compare", "register", "publish")
    for module in modules
]
"""The modules that determine the numbers of a run. The report and the registry name their digest."""

Uses = Mapping[Kind, Iterable[str] | None]
"""Kind -> the names of the registered items that are used; None for all."""


def uses_of(experiment: Experiment) -> Uses:
    """The registered items that an experiment uses, of which other packages may define some."""
    return {
        "row format": [source.format_spec.name for task in experiment.tasks for source in task.sources],
        "verifier": [task.verifier.name for task in experiment.tasks if task.verifier],
        "mixer": [method.method for method in experiment.methods],
        "merge": [merge.method for merge in experiment.merges],
        "metric": None,
    }


def outside_code(uses: Uses) -> list[str]:
    """The modules outside this project that define these items."""
    return sorted({module for kind, names in uses.items() for module in outside_modules(kind, names)})


class Plan(BaseModel):
    """The settings of every stage; None for a stage that the experiment does not have."""

    base_model: BaseModelSettings
    data: DataSettings
    scoring: ScoringSettings
    specialist: SpecialistSettings
    specialist_losses: SpecialistLossesSettings
    tasks: list[str]
    generalists: list[GeneralistSettings]
    """Those that start from the base model."""
    warm_generalists: list[GeneralistSettings]
    """Those that start from a merge."""
    starts: list[str]
    """The merges from which they start."""
    merges: list[MergeSettings]
    evaluation: EvaluationSettings
    benchmarks: BenchmarkSettings | None
    comparison: ComparisonSettings
    registry: RegistrySettings | None
    publication: PublicationSettings | None

    @classmethod
    def of(cls, experiment: Experiment, fingerprints: Mapping[str, str]) -> Self:
        """Divide an experiment among its stages.

        Args:
            experiment: the checked configuration.
            fingerprints: digest of the content of each source, by the task's name, "base_model" or
                `DECONTAMINATE` or `BENCHMARKS`, which are needed if the experiment has these keys.
        """

        def common(stage: Stage, *further: str, used: Uses | None = None) -> dict[str, Any]:
            outside = outside_code(used or {})
            return {
                "plugins": experiment.plugins if outside else [],
                "code": code_digest([_RUN_STEP, *MODULES[stage], *further, *outside]),
                "environment": environment_digest(),
                "seed": experiment.seed,
            }

        training, evaluation, uses = experiment.training, experiment.evaluation, uses_of(experiment)
        tasks = [task.name for task in experiment.tasks]
        scoring: dict[str, Any] = {
            "batch_size": evaluation.batch_size,
            "precision": evaluation.precision,
            "loading": experiment.loading,
        }
        reference_logps = ScoringSettings(
            **common("reference_logps"), **scoring, processes=evaluation.processes
        )
        validation = reference_logps.model_copy(update={"processes": 1}) if training.validate_every else None
        generalists = [
            GeneralistSettings(
                **common("train_generalist", used={"mixer": [method.method]}),
                training=training,
                loading=experiment.loading,
                budget=method.budget(experiment.budget.generalist),
                scoring=validation,
                method=method.model_copy(update={"of_grid": None}),
            )
            for method in experiment.methods
        ]
        specialist = SpecialistSettings(
            **common("train_specialist"),
            training=training,
            loading=experiment.loading,
            budget=experiment.budget.specialist,
            scoring=validation,
            score_precision=None if experiment.specialist_losses.cross_fit else evaluation.precision,
        )
        results = experiment.without_delivery()
        return cls(
            base_model=BaseModelSettings(
                **common("prepare_base_model"),
                base_model=experiment.base_model,
                synthetic_tasks=[name for task in experiment.tasks for name in task.synthetic_tasks],
                fingerprint=fingerprints["base_model"],
            ),
            data=DataSettings(
                **common("prepare_data", used={kind: uses[kind] for kind in ("row format", "verifier")}),
                tasks=experiment.tasks,
                split=experiment.split,
                max_length=experiment.max_length,
                long_answers=experiment.long_answers,
                date=experiment.date,
                near_duplicates=experiment.near_duplicates,
                decontaminate=experiment.decontaminate,
                fingerprints=[fingerprints[task] for task in tasks]
                + ([fingerprints[DECONTAMINATE]] if experiment.decontaminate else []),
            ),
            scoring=reference_logps,
            specialist=specialist,
            specialist_losses=SpecialistLossesSettings(
                **common("specialist_losses"),
                **scoring,
                loss=training.loss,
                warn_gap=experiment.specialist_losses.warn_gap,
                budget=experiment.budget.specialist,
                pairs_per_step=training.batch_size,
                fold=specialist.for_a_half() if experiment.specialist_losses.cross_fit else None,
            ),
            tasks=tasks,
            generalists=[each for each in generalists if each.method.init is None],
            warm_generalists=[each for each in generalists if each.method.init is not None],
            starts=experiment.starts,
            merges=[
                MergeSettings(
                    **common("merge_specialists", used={"merge": [merge.method]}),
                    merge=merge,
                    tasks=tasks,
                    tuning=Tuning(
                        **scoring | {"loading": experiment.loading.of("merge")},
                        loss=training.loss,
                        **({"tries": merge.tries} if merge.tries else {}),
                    )
                    if merge.is_tuned
                    else None,
                )
                for merge in experiment.merges
            ],
            evaluation=EvaluationSettings(
                **common("evaluate", used={kind: uses[kind] for kind in ("verifier", "metric")}),
                evaluation=evaluation,
                loading=experiment.loading,
                loss=training.loss,
                verifiers={task.name: task.verifier for task in experiment.tasks if task.verifier},
            ),
            benchmarks=BenchmarkSettings(
                **common("benchmark"),
                **{**scoring, "loading": experiment.loading.without_attention()},
                benchmarks=experiment.benchmarks,
                fingerprint=fingerprints[BENCHMARKS],
            )
            if experiment.benchmarks
            else None,
            comparison=ComparisonSettings(
                **common("compare", *_NUMERIC_MODULES, used={"metric": None}), experiment=results
            ),
            registry=experiment.registry
            and RegistrySettings(
                **common("register", *_NUMERIC_MODULES, used={"metric": None}),
                registry=experiment.registry,
                experiment=results,
            ),
            publication=experiment.output
            and PublicationSettings(**common("publish"), output=experiment.output, run=experiment.identity),
        )

    def as_outputs(self) -> dict[str, str | list[str]]:
        """The plan as a component returns it, by field: settings as JSON text, "" for those that are None."""
        return {
            name: [_as_text(item) for item in value] if isinstance(value, list) else _as_text(value)
            for name, value in self
        }


def _as_text(value: Settings | str | None) -> str:
    return value.model_dump_json() if isinstance(value, Settings) else value or ""
