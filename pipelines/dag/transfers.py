"""How many copies of models the pods of a pipeline download and upload, from the compiled pipeline itself.

KFP's launcher downloads every input artifact of a pod before the stage starts, and uploads its outputs. The
numbers leave out further attempts, results from the cache, the nodes of a TrainJob, and what a stage itself
transfers, as `prepare_base_model` and `publish` do.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from graphlib import TopologicalSorter
from typing import Any, NamedTuple, TypeAlias

from google.protobuf import json_format  # type: ignore[import-untyped]

from automixalign.config.experiment import Experiment
from automixalign.config.plan import Plan
from automixalign.models.base_address import address_of
from pipelines.dag.pipeline import build_pipeline
from pipelines.dag.placement import ClusterPlacement


class Copies(NamedTuple):
    """Full models and LoRA adapters."""

    models: int = 0
    adapters: int = 0

    def plus(self, other: "Copies", times: int = 1) -> "Copies":
        """These and `times` the others."""
        return Copies(self.models + times * other.models, self.adapters + times * other.adapters)


class Transfers(NamedTuple):
    """What all runs of a stage transfer."""

    stage: str
    loop: str
    """The nested pipeline; "" outside of one."""
    runs: int
    downloads: Copies
    uploads: Copies

    @property
    def title(self) -> str:
        """`evaluate (merges)`."""
        return f"{self.stage} ({self.loop})" if self.loop else self.stage


_Values: TypeAlias = Mapping[str, Any]
"""What inputs or outputs are: an artifact is its `Copies`, a parameter is its name in the plan."""


def transfers_of(experiment: Experiment) -> list[Transfers]:
    """What each stage of an experiment's pipeline transfers."""
    pipeline: Any = build_pipeline(experiment, ClusterPlacement(experiment))
    walk = _Walk(json_format.MessageToDict(pipeline.pipeline_spec), experiment)
    walk.visit(walk.spec["root"], {}, "", 1)
    return walk.transfers


class _Walk:
    """Follows the models through a compiled pipeline.

    Args:
        spec: the pipeline.
        experiment: says how many items each loop has, and whether trainings make adapters.
    """

    def __init__(self, spec: dict[str, Any], experiment: Experiment) -> None:
        self.spec = spec
        self.plan = Plan.of(experiment, defaultdict(str))
        lora = experiment.training.lora
        # Without an address for its base model, an adapter is folded into a full model.
        is_adapter = lora and (lora.quantize or address_of(experiment.base_model))
        self.trained = Copies(adapters=1) if is_adapter else Copies(models=1)
        self.transfers: list[Transfers] = []

    def visit(self, component: _Values, inputs: _Values, loop: str, runs: int) -> _Values:
        """Add the stages of a component: of the pipeline, a nested one, or the body of a loop.

        Args:
            component: from the spec.
            inputs: of the component.
            loop: the nested pipeline that it belongs to.
            runs: how many times it runs.

        Returns:
            The outputs of one run.
        """
        tasks = dict(sorted(component["dag"]["tasks"].items()))
        graph = {name: task.get("dependentTasks", []) for name, task in tasks.items()}
        results: dict[str, _Values] = {}
        for name in TopologicalSorter(graph).static_order():
            task = tasks[name]
            called = self.spec["components"][task["componentRef"]["name"]]
            given = {key: _value(source, inputs, results) for key, source in _sources(task)}
            items = task.get("parameterIterator", {}).get("items", {}).get("inputParameter")
            times = len(getattr(self.plan, given[items])) if items else 1
            if "dag" in called:
                outputs = self.visit(called, given, loop or name, runs * times)
            else:
                outputs = self._stage(called, given, loop, runs)
            results[name] = {
                key: Copies().plus(each, times) if isinstance(each, Copies) else each
                for key, each in outputs.items()
            }
        made = component["dag"].get("outputs", {}).get("artifacts", {})
        selected = {key: source["artifactSelectors"][0] for key, source in made.items()}
        return {
            key: results[each["producerSubtask"]][each["outputArtifactKey"]] for key, each in selected.items()
        }

    def _stage(self, component: _Values, inputs: _Values, loop: str, runs: int) -> _Values:
        """Add a stage, and return its outputs."""
        stage = re.sub(r"-\d+$", "", component["executorLabel"].removeprefix("exec-")).replace("-", "_")
        received = Copies()
        for value in inputs.values():
            received = received.plus(value) if isinstance(value, Copies) else received
        outputs = component.get("outputDefinitions", {})
        values: dict[str, Any] = {key: key for key in outputs.get("parameters", {})}
        sent = Copies()
        for key, output in outputs.get("artifacts", {}).items():
            is_model = output["artifactType"]["schemaTitle"] == "system.Model"
            values[key] = self._made(stage, loop, received) if is_model else Copies()
            sent = sent.plus(values[key])
        totals = (Copies().plus(each, runs) for each in (received, sent))
        self.transfers.append(Transfers(stage, loop.replace("-", "_"), runs, *totals))
        return values

    def _made(self, stage: str, loop: str, received: Copies) -> Copies:
        """The models in a stage's output."""
        if stage == "gather_specialists":
            return received
        if stage == "gather_merges":
            return Copies(models=len(self.plan.starts))
        # A generalist that starts from a merge is saved as a full model.
        return self.trained if stage.startswith("train_") and not loop.startswith("warm") else Copies(models=1)


def _sources(task: _Values) -> list[tuple[str, _Values]]:
    inputs = task.get("inputs", {})
    return [*inputs.get("artifacts", {}).items(), *inputs.get("parameters", {}).items()]


def _value(source: _Values, inputs: _Values, results: Mapping[str, _Values]) -> Any:
    """What an input gets; None for a constant, the item of a loop and the pipeline's own parameter."""
    (kind, address), *_ = source.items()
    if kind in ("componentInputArtifact", "componentInputParameter"):
        return inputs.get(address)
    if kind in ("taskOutputArtifact", "taskOutputParameter"):
        key = "outputArtifactKey" if kind == "taskOutputArtifact" else "outputParameterKey"
        return results[address["producerTask"]][address[key]]
    return None
