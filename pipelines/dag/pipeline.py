"""The DAG of AutoMixAlign. It only wires: what a step does stands in `components/` and `automixalign/`.

    validate_config -> prepare_base_model -> prepare_data -> reference_logps -> evaluate (reference)
    specialists: for each task    train_specialist  -> evaluate -> specialist_losses
                 gather_specialists
    generalists: for each method  train_generalist  -> evaluate
    merges:      for each merge   merge_specialists -> evaluate
    compare -> register, publish

Loops stand in pipelines of their own, because the local runner can only loop over a pipeline's parameter
and collect artifacts at the end of a pipeline. What else is wired around the open-source backend's limits
stands in `backend.md`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model

from automixalign.config.experiment import Experiment
from components.compare.component import compare
from components.evaluate.component import evaluate
from components.gather_specialists.component import gather_specialists
from components.merge_specialists.component import merge_specialists
from components.prepare_base_model.component import prepare_base_model
from components.prepare_data.component import prepare_data
from components.publish.component import publish
from components.reference_logps.component import reference_logps
from components.register.component import register
from components.specialist_losses.component import specialist_losses
from components.train_generalist.component import train_generalist
from components.train_specialist.component import train_specialist
from components.validate_config.component import validate_config
from pipelines.dag.placement import ON_THIS_MACHINE, Placement


class Specialists(NamedTuple):
    """What the loop over the tasks hands on."""

    models: list[Model]
    trajectories: list[Artifact]
    losses: list[Dataset]
    evaluations: list[Dataset]


class Generalists(NamedTuple):
    """What the loop over the methods hands on."""

    models: list[Model]
    trajectories: list[Artifact]
    evaluations: list[Dataset]


class Merges(NamedTuple):
    """What the loop over the merges hands on."""

    models: list[Model]
    evaluations: list[Dataset]


def _specialists(place: Placement) -> Callable[..., Any]:
    """The loop over the tasks: train, evaluate and score one specialist each."""

    @dsl.pipeline(name="specialists", display_name="Specialists")
    def specialists(
        tasks: list,  # type: ignore[type-arg]  # kfp knows no list[str]
        specialist: str,
        losses: str,
        evaluation: str,
        data: Input[Dataset],
        reference_logps: Input[Dataset],
        base_model: Input[Model],
    ) -> Specialists:
        with dsl.ParallelFor(items=tasks) as task_name:
            trained = place(
                train_specialist,
                settings=specialist,
                task_name=task_name,
                data=data,
                reference_logps=reference_logps,
                base_model=base_model,
            )
            model = trained.outputs["model"]
            evaluated = place(
                evaluate,
                settings=evaluation,
                data=data,
                reference_logps=reference_logps,
                base_model=base_model,
                model=model,
            )
            scored = place(
                specialist_losses,
                settings=losses,
                task_name=task_name,
                data=data,
                reference_logps=reference_logps,
                base_model=base_model,
                model=model,
                evaluation=evaluated.outputs["evaluation"],
            )
        return Specialists(
            models=dsl.Collected(model),
            trajectories=dsl.Collected(trained.outputs["trajectory"]),
            losses=dsl.Collected(scored.outputs["losses"]),
            evaluations=dsl.Collected(evaluated.outputs["evaluation"]),
        )

    return specialists  # type: ignore[no-any-return]


def _generalists(place: Placement) -> Callable[..., Any]:
    """The loop over the methods: train and evaluate one generalist each."""

    @dsl.pipeline(name="generalists", display_name="Generalists")
    def generalists(
        methods: list,  # type: ignore[type-arg]
        evaluation: str,
        data: Input[Dataset],
        reference_logps: Input[Dataset],
        losses: Input[Dataset],
        base_model: Input[Model],
    ) -> Generalists:
        with dsl.ParallelFor(items=methods) as settings:
            trained = place(
                train_generalist,
                settings=settings,
                data=data,
                reference_logps=reference_logps,
                losses=losses,
                base_model=base_model,
            )
            evaluated = place(
                evaluate,
                settings=evaluation,
                data=data,
                reference_logps=reference_logps,
                base_model=base_model,
                model=trained.outputs["model"],
            )
        return Generalists(
            models=dsl.Collected(trained.outputs["model"]),
            trajectories=dsl.Collected(trained.outputs["trajectory"]),
            evaluations=dsl.Collected(evaluated.outputs["evaluation"]),
        )

    return generalists  # type: ignore[no-any-return]


def _merges(place: Placement) -> Callable[..., Any]:
    """The loop over the merges: make and evaluate one model each."""

    @dsl.pipeline(name="merges", display_name="Merges")
    def merges(
        methods: list,  # type: ignore[type-arg]
        evaluation: str,
        data: Input[Dataset],
        reference_logps: Input[Dataset],
        specialists: Input[Model],
        base_model: Input[Model],
    ) -> Merges:
        with dsl.ParallelFor(items=methods) as settings:
            merged = place(merge_specialists, settings=settings, base_model=base_model, specialists=specialists)
            evaluated = place(
                evaluate,
                settings=evaluation,
                data=data,
                reference_logps=reference_logps,
                base_model=base_model,
                model=merged.outputs["model"],
            )
        return Merges(
            models=dsl.Collected(merged.outputs["model"]),
            evaluations=dsl.Collected(evaluated.outputs["evaluation"]),
        )

    return merges  # type: ignore[no-any-return]


def build(experiment: Experiment, place: Placement = ON_THIS_MACHINE) -> Callable[..., Any]:
    """The pipeline of an experiment, with the steps that it asks for.

    Its one parameter, `config`, is the experiment by default; another one with the same parts (merges,
    registry, output) can be given as JSON or YAML.

    Args:
        experiment: the checked configuration.
        place: makes each task, and says where on a cluster it runs.
    """
    # kfp cannot collect from an empty loop, so the loop over merges is there only where there are any.
    parts = experiment.parts
    specialists, generalists, merges = _specialists(place), _generalists(place), _merges(place)

    @dsl.pipeline(
        name="automixalign",
        display_name="AutoMixAlign",
        description="Align one language model to several tasks: specialists, generalists, merges, leaderboard.",
        pipeline_config=place.pipeline_config,
    )
    def automixalign(config: str = experiment.model_dump_json()) -> None:
        plan = place(validate_config, config=config, parts=parts).outputs
        base_model = place(prepare_base_model, settings=plan["base_model"]).outputs["base_model"]
        data = place(prepare_data, settings=plan["data"], base_model=base_model).outputs["data"]
        logps = place(reference_logps, settings=plan["scoring"], data=data, base_model=base_model).outputs
        common = {"data": data, "reference_logps": logps["reference_logps"], "base_model": base_model}
        evaluated = place(evaluate, settings=plan["evaluation"], **common)
        first = specialists(
            tasks=plan["tasks"],
            specialist=plan["specialist"],
            losses=plan["specialist_losses"],
            evaluation=plan["evaluation"],
            **common,
        ).outputs
        to_merge = {"models": first["models"]} if "merges" in parts else {}
        gathered = place(gather_specialists, losses=first["losses"], **to_merge).outputs
        trained = generalists(
            methods=plan["generalists"],
            evaluation=plan["evaluation"],
            losses=gathered["all_losses"],
            **common,
        ).outputs
        to_compare = {
            "reference": evaluated.outputs["evaluation"],
            "specialists": first["evaluations"],
            "generalists": trained["evaluations"],
            "trajectories": trained["trajectories"],
            "specialist_trajectories": first["trajectories"],
            "losses": first["losses"],
            "data": data,
        }
        candidates = {"generalists": trained["models"]}
        if "merges" in parts:
            merged = merges(
                methods=plan["merges"],
                evaluation=plan["evaluation"],
                specialists=gathered["all_models"],
                **common,
            ).outputs
            to_compare["merges"], candidates["merges"] = merged["evaluations"], merged["models"]
        compared = place(compare, settings=plan["comparison"], **to_compare).outputs
        if "registry" in parts:
            place(
                register,
                settings=plan["registry"],
                board=compared["leaderboard"],
                data=data,
                base_model=base_model,
                **candidates,
            )
        if "output" in parts:
            place(
                publish,
                settings=plan["publication"],
                board=compared["leaderboard"],
                page=compared["page"],
                facts=compared["facts"],
                base_model=base_model,
                **candidates,
            )

    pipeline: Callable[..., Any] = automixalign
    return pipeline
