"""The DAG of AutoMixAlign. It only wires: what a step does stands in `components/` and `automixalign/`.

    validate_config -> prepare_base_model -> prepare_data -> reference_logps -> evaluate (reference)
    specialists: for each task    train_specialist  -> evaluate -> specialist_losses
    generalists: for each method  train_generalist  -> evaluate
    merges:      for each merge   merge_specialists -> evaluate
    compare -> register, publish

Loops stand in pipelines of their own, because the local runner can only loop over a pipeline's parameter
and collect artifacts at the end of a pipeline.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model

from components.compare.component import compare
from components.evaluate.component import evaluate
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


@dsl.pipeline(name="specialists", display_name="Specialists")
def specialists(
    tasks: list,  # type: ignore[type-arg]  # kfp knows no list[str]
    specialist: str,
    losses: str,
    evaluation: str,
    data: Input[Dataset],
    logps: Input[Dataset],
    base_model: Input[Model],
) -> Specialists:
    """Train, evaluate and score one specialist a task."""
    with dsl.ParallelFor(items=tasks, name="tasks") as task_name:
        trained = train_specialist(
            settings=specialist, task_name=task_name, data=data, logps=logps, base_model=base_model
        )
        model = trained.outputs["model"]
        evaluated = evaluate(settings=evaluation, data=data, logps=logps, base_model=base_model, model=model)
        scored = specialist_losses(
            settings=losses,
            task_name=task_name,
            data=data,
            logps=logps,
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


@dsl.pipeline(name="generalists", display_name="Generalists")
def generalists(
    methods: list,  # type: ignore[type-arg]
    evaluation: str,
    data: Input[Dataset],
    logps: Input[Dataset],
    losses: Input[list[Dataset]],
    base_model: Input[Model],
) -> Generalists:
    """Train and evaluate one generalist a method."""
    with dsl.ParallelFor(items=methods, name="methods") as settings:
        trained = train_generalist(
            settings=settings, data=data, logps=logps, losses=losses, base_model=base_model
        )
        evaluated = evaluate(
            settings=evaluation,
            data=data,
            logps=logps,
            base_model=base_model,
            model=trained.outputs["model"],
        )
    return Generalists(
        models=dsl.Collected(trained.outputs["model"]),
        trajectories=dsl.Collected(trained.outputs["trajectory"]),
        evaluations=dsl.Collected(evaluated.outputs["evaluation"]),
    )


@dsl.pipeline(name="merges", display_name="Merges")
def merges(
    methods: list,  # type: ignore[type-arg]
    evaluation: str,
    data: Input[Dataset],
    logps: Input[Dataset],
    models: Input[list[Model]],
    base_model: Input[Model],
) -> Merges:
    """Make and evaluate one model a merge method."""
    with dsl.ParallelFor(items=methods, name="merges") as settings:
        merged = merge_specialists(settings=settings, base_model=base_model, specialists=models)
        evaluated = evaluate(
            settings=evaluation,
            data=data,
            logps=logps,
            base_model=base_model,
            model=merged.outputs["model"],
        )
    return Merges(
        models=dsl.Collected(merged.outputs["model"]),
        evaluations=dsl.Collected(evaluated.outputs["evaluation"]),
    )


@cache
def build(
    with_merges: bool = True, with_registry: bool = False, with_output: bool = False
) -> Callable[..., Any]:
    """The pipeline; its one parameter, `config`, is an experiment as JSON or YAML.

    Args:
        with_merges: leave the merges out where an experiment has none: kfp cannot collect from an empty loop.
        with_registry: end with a step that registers the best model, for experiments with a `registry`.
        with_output: end with a step that copies models and report away, for experiments with an `output`.
    """

    @dsl.pipeline(
        name="automixalign",
        display_name="AutoMixAlign",
        description="Align one language model to several tasks: specialists, generalists, merges, leaderboard.",
    )
    def automixalign(config: str) -> None:
        plan = validate_config(config=config).outputs
        base_model = prepare_base_model(settings=plan["base_model"]).outputs["base_model"]
        data = prepare_data(settings=plan["data"], base_model=base_model).outputs["data"]
        logps = reference_logps(settings=plan["scoring"], data=data, base_model=base_model).outputs["logps"]
        common = {"data": data, "logps": logps, "base_model": base_model}
        evaluated = evaluate(settings=plan["evaluation"], model=base_model, **common)
        first = specialists(
            tasks=plan["tasks"],
            specialist=plan["specialist"],
            losses=plan["specialist_losses"],
            evaluation=plan["evaluation"],
            **common,
        ).outputs
        trained = generalists(
            methods=plan["generalists"],
            evaluation=plan["evaluation"],
            losses=first["losses"],
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
        if with_merges:
            merged = merges(
                methods=plan["merges"],
                evaluation=plan["evaluation"],
                models=first["models"],
                **common,
            ).outputs
            to_compare["merges"], candidates["merges"] = merged["evaluations"], merged["models"]
        compared = compare(settings=plan["comparison"], **to_compare).outputs
        if with_registry:
            register(
                settings=plan["registry"],
                board=compared["leaderboard"],
                data=data,
                base_model=base_model,
                **candidates,
            )
        if with_output:
            publish(
                settings=plan["publication"],
                board=compared["leaderboard"],
                page=compared["page"],
                facts=compared["facts"],
                base_model=base_model,
                **candidates,
            )

    pipeline: Callable[..., Any] = automixalign
    return pipeline
