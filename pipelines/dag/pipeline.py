"""The DAG of AutoMixAlign. It only connects stages; `components/` and `automixalign/` do the work.

    validate_config -> prepare_base_model -> prepare_data -> reference_logps -> evaluate (reference)
                                          -> benchmark (reference)
    specialists: for each task    train_specialist  -> evaluate -> specialist_losses
                 gather_specialists
    generalists: for each method  train_generalist  -> evaluate, benchmark
    merges:      for each merge   merge_specialists -> evaluate, benchmark
                 gather_merges
    warm_generalists: for each method with `init`  train_generalist -> evaluate, benchmark
    compare -> register, publish

Specialists solve no benchmarks: they are no final models. With a judge, the evaluation of the reference is an
input of the others. `Experiment.parts` lists the optional parts.
Each loop is a pipeline of its own: kfp's local runner can loop only over a parameter of a pipeline, and can
collect artifacts only at its end. `backend.md` lists the other limits of the open-source backend. Generalists
that start from a merge have a loop of their own: the others then neither wait for merges nor depend on them.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model

from automixalign.config.experiment import Experiment
from components.benchmark.component import benchmark
from components.compare.component import compare
from components.evaluate.component import evaluate
from components.gather_merges.component import gather_merges
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
from pipelines.dag.placement import Placement


class Specialists(NamedTuple):
    """Outputs of the loop over the tasks."""

    models: list[Model]
    trajectories: list[Artifact]
    losses: list[Dataset]
    evaluations: list[Dataset]


class Generalists(NamedTuple):
    """Outputs of the loop over the methods."""

    models: list[Model]
    trajectories: list[Artifact]
    evaluations: list[Dataset]


class Merges(NamedTuple):
    """Outputs of the loop over the merges."""

    models: list[Model]
    evaluations: list[Dataset]


def _with_benchmarks(outputs: Any, parts: Sequence[str]) -> Any:
    """The outputs of a loop, and `benchmarks` if the pipeline has this part: kfp knows no optional output."""
    if "benchmarks" not in parts:
        return outputs
    return NamedTuple(outputs.__name__, [*outputs.__annotations__.items(), ("benchmarks", list[Artifact])])


def _without(*absent: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Leave out inputs of a loop, which are then None.

    No server is known to run a nested pipeline with an optional artifact.
    """

    def change(loop: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(loop)
        parameters = [each for each in signature.parameters.values() if each.name not in absent]

        @functools.wraps(loop)
        def without(*inputs: Any) -> Any:
            names = (each.name for each in parameters)
            return loop(**dict(zip(names, inputs, strict=True)), **dict.fromkeys(absent))

        without.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return without

    return change


def _absent(parts: Sequence[str]) -> list[str]:
    """The input of a loop that only a judge reads: it compares with the reference's answers."""
    return [] if "judge" in parts else ["baseline"]


def _given(**inputs: Any) -> dict[str, Any]:
    """The inputs that are there."""
    return {name: value for name, value in inputs.items() if value is not None}


def _policy(parts: Sequence[str], model: Any, base_model: Any) -> dict[str, Any]:
    """A trained model as input of the stages that measure it: only an adapter needs its base model."""
    return {"model": model, "base_model": base_model} if "adapters" in parts else {"model": model}


def _measure(
    add_task: Placement,
    parts: Sequence[str],
    policy: Mapping[str, Any],
    settings: Mapping[str, Any],
    inputs: Mapping[str, Any],
) -> dict[str, Any]:
    """The stages that measure a final model.

    Args:
        add_task: makes the tasks.
        parts: of the pipeline.
        policy: the model, and the base model of an adapter.
        settings: of `evaluation` and `benchmarks`, and the `baseline` of a judge or None.
        inputs: further ones of `evaluate`.
    """
    baseline = _given(baseline=settings["baseline"])
    evaluated = add_task(evaluate, settings=settings["evaluation"], **policy, **baseline, **inputs)
    measured = {"evaluations": evaluated.outputs["evaluation"]}
    if "benchmarks" in parts:
        tokenizer = inputs["tokenizer"]
        solved = add_task(benchmark, settings=settings["benchmarks"], tokenizer=tokenizer, **policy)
        measured["benchmarks"] = solved.outputs["results"]
    return measured


def _specialists(add_task: Placement, parts: Sequence[str]) -> Callable[..., Any]:
    """The loop over the tasks: train, evaluate and score one specialist each."""

    @dsl.pipeline(name="specialists", display_name="Specialists")
    @_without(*_absent(parts))
    def specialists(
        tasks: list,  # type: ignore[type-arg]  # kfp knows no list[str]
        specialist: str,
        losses: str,
        evaluation: str,
        data: Input[Dataset],
        reference_logps: Input[Dataset],
        base_model: Input[Model],
        tokenizer: Input[Artifact],
        baseline: Input[Dataset],
    ) -> Specialists:
        scores = {"data": data, "reference_logps": reference_logps}
        inputs = {**scores, "base_model": base_model}
        with dsl.ParallelFor(items=tasks) as task_name:
            trained = add_task(train_specialist, settings=specialist, task_name=task_name, **inputs)
            model = trained.outputs["model"]
            evaluated = add_task(
                evaluate,
                settings=evaluation,
                tokenizer=tokenizer,
                **_policy(parts, model, base_model),
                **scores,
                **_given(baseline=baseline),
            )
            scored = add_task(
                specialist_losses,
                settings=losses,
                task_name=task_name,
                scores=trained.outputs["scores"],
                evaluation=evaluated.outputs["evaluation"],
                **scores,
                **({"base_model": base_model} if "cross-fitting" in parts else {}),
            )
        return Specialists(
            models=dsl.Collected(model),
            trajectories=dsl.Collected(trained.outputs["trajectory"]),
            losses=dsl.Collected(scored.outputs["losses"]),
            evaluations=dsl.Collected(evaluated.outputs["evaluation"]),
        )

    return specialists  # type: ignore[no-any-return]


def _generalists(add_task: Placement, parts: Sequence[str], warm: bool = False) -> Callable[..., Any]:
    """The loop over the methods without or with `init`: train and evaluate one generalist each."""
    outputs = _with_benchmarks(Generalists, parts)
    title = "Generalists that start from a merge" if warm else "Generalists"

    @dsl.pipeline(name="warm_generalists" if warm else "generalists", display_name=title)
    @_without(*_absent(parts), *([] if warm else ["starts"]))
    def generalists(
        methods: list,  # type: ignore[type-arg]
        evaluation: str,
        benchmarks: str,
        data: Input[Dataset],
        reference_logps: Input[Dataset],
        losses: Input[Dataset],
        base_model: Input[Model],
        tokenizer: Input[Artifact],
        starts: Input[Model],
        baseline: Input[Dataset],
    ) -> outputs:  # type: ignore[valid-type]
        scores = {"data": data, "reference_logps": reference_logps}
        to_train = {"losses": losses, "base_model": base_model, **scores, **_given(starts=starts)}
        measuring = {"evaluation": evaluation, "benchmarks": benchmarks, "baseline": baseline}
        with dsl.ParallelFor(items=methods) as settings:
            trained = add_task(train_generalist, settings=settings, **to_train).outputs
            # A merge has no address, so what starts from it is saved as a full model.
            policy = {"model": trained["model"]} if warm else _policy(parts, trained["model"], base_model)
            measured = _measure(add_task, parts, policy, measuring, {"tokenizer": tokenizer, **scores})
        collected = {"models": trained["model"], "trajectories": trained["trajectory"], **measured}
        collected = {name: dsl.Collected(output) for name, output in collected.items()}
        return outputs(**collected)  # type: ignore[no-any-return]

    return generalists  # type: ignore[no-any-return]


def _merges(add_task: Placement, parts: Sequence[str]) -> Callable[..., Any]:
    """The loop over the merges: make and evaluate one model each.

    Args:
        add_task: makes the tasks.
        parts: of the pipeline; with `tuned merges`, some search their weights on the validation split.
    """
    outputs = _with_benchmarks(Merges, parts)

    @dsl.pipeline(name="merges", display_name="Merges")
    @_without(*_absent(parts))
    def merges(
        methods: list,  # type: ignore[type-arg]
        evaluation: str,
        benchmarks: str,
        data: Input[Dataset],
        reference_logps: Input[Dataset],
        losses: Input[Dataset],
        specialists: Input[Model],
        base_model: Input[Model],
        tokenizer: Input[Artifact],
        baseline: Input[Dataset],
    ) -> outputs:  # type: ignore[valid-type]
        scores = {"data": data, "reference_logps": reference_logps}
        to_merge = {
            "base_model": base_model,
            **({**scores, "losses": losses} if "tuned merges" in parts else {}),
        }
        with dsl.ParallelFor(items=methods) as settings:
            merged = add_task(merge_specialists, settings=settings, specialists=specialists, **to_merge)
            measuring = {"evaluation": evaluation, "benchmarks": benchmarks, "baseline": baseline}
            policy = {"model": merged.outputs["model"]}
            measured = _measure(add_task, parts, policy, measuring, {"tokenizer": tokenizer, **scores})
        collected = {"models": merged.outputs["model"], **measured}
        collected = {name: dsl.Collected(output) for name, output in collected.items()}
        return outputs(**collected)  # type: ignore[no-any-return]

    return merges  # type: ignore[no-any-return]


def build_pipeline(experiment: Experiment, add_task: Placement) -> Callable[..., Any]:
    """Return the pipeline of an experiment, with the stages that it needs.

    The pipeline has one parameter, `config`, with the experiment as default. It accepts any experiment with the
    same parts (`Experiment.parts`), as JSON or YAML.

    Args:
        experiment: the checked configuration.
        add_task: makes the tasks, for this machine or for a cluster.
    """
    # kfp cannot collect from an empty loop, so an experiment has only the loops that it needs.
    parts = experiment.parts
    specialists, merges = _specialists(add_task, parts), _merges(add_task, parts)
    generalists, warm_generalists = (_generalists(add_task, parts, warm) for warm in (False, True))

    @dsl.pipeline(
        name="automixalign",
        display_name="AutoMixAlign",
        description="Align one language model to several tasks: specialists, generalists, merges, leaderboard.",
        pipeline_config=add_task.pipeline_config,
    )
    def automixalign(config: str = experiment.model_dump_json()) -> None:
        plan = add_task(validate_config, config=config, parts=parts).outputs
        normal = add_task(prepare_base_model, settings=plan["base_model"]).outputs
        base_model, tokenizer, to_compare = normal["base_model"], normal["tokenizer"], {}
        prepared = add_task(prepare_data, settings=plan["data"], tokenizer=tokenizer)
        data = prepared.outputs["data"]
        if "benchmarks" in parts:
            solved = add_task(benchmark, settings=plan["benchmarks"], tokenizer=tokenizer, model=base_model)
            add_task.fail_early(solved, before=prepared)
            to_compare["reference_benchmarks"] = solved.outputs["results"]
        logps = add_task(reference_logps, settings=plan["scoring"], data=data, base_model=base_model).outputs
        scores = {"data": data, "reference_logps": logps["reference_logps"], "tokenizer": tokenizer}
        # The cache holds the scores of the reference.
        to_answer = {"model": base_model} if "answers" in parts else {}
        evaluated = add_task(evaluate, settings=plan["evaluation"], **scores, **to_answer)
        common = {**scores, "base_model": base_model}
        to_judge = {"baseline": evaluated.outputs["evaluation"]} if "judge" in parts else {}
        first = specialists(
            tasks=plan["tasks"],
            specialist=plan["specialist"],
            losses=plan["specialist_losses"],
            evaluation=plan["evaluation"],
            **common,
            **to_judge,
        ).outputs
        to_merge = {"models": first["models"]} if "merges" in parts else {}
        gathered = add_task(gather_specialists, losses=first["losses"], **to_merge).outputs
        measuring = {"evaluation": plan["evaluation"], "benchmarks": plan["benchmarks"]}
        to_train = {"losses": gathered["all_losses"], **measuring, **common, **to_judge}
        to_compare |= {
            "reference": evaluated.outputs["evaluation"],
            "specialists": first["evaluations"],
            "specialist_trajectories": first["trajectories"],
            "losses": first["losses"],
            "data": data,
        }
        candidates, families = {}, {}
        if "generalists" in parts:
            trained = generalists(methods=plan["generalists"], **to_train).outputs
            to_compare |= {"generalists": trained["evaluations"], "trajectories": trained["trajectories"]}
            candidates["generalists"] = trained["models"]
            families["generalist"] = trained
        if "merges" in parts:
            merged = merges(methods=plan["merges"], specialists=gathered["all_models"], **to_train).outputs
            to_compare["merges"], candidates["merges"] = merged["evaluations"], merged["models"]
            families["merge"] = merged
        if "warm starts" in parts:
            starts = add_task(gather_merges, names=plan["starts"], models=merged["models"]).outputs["starts"]
            warm = warm_generalists(methods=plan["warm_generalists"], starts=starts, **to_train).outputs
            to_compare |= {"warm_generalists": warm["evaluations"], "warm_trajectories": warm["trajectories"]}
            candidates["warm_generalists"] = warm["models"]
            families["warm"] = warm
        if "benchmarks" in parts:
            to_compare |= {f"{name}_benchmarks": outputs["benchmarks"] for name, outputs in families.items()}
        compared = add_task(compare, settings=plan["comparison"], **to_compare).outputs
        if "registry" in parts:
            add_task(
                register,
                settings=plan["registry"],
                board=compared["leaderboard"],
                data=data,
                base_model=base_model,
                **candidates,
            )
        if "output" in parts:
            add_task(
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
