"""The first stage of the DAG: check the configuration and its sources, then plan the other stages."""

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from automixalign.config.data import DecontaminationSpec, LocationSpec, SourceSpec
from automixalign.config.experiment import Experiment, parse_experiment
from automixalign.config.file import parse_yaml
from automixalign.config.models import BaseModelSpec
from automixalign.config.plan import BENCHMARKS, DECONTAMINATE, Plan
from automixalign.config.sources import (
    HubSource,
    Source,
    parse_base_model,
    parse_data,
)
from automixalign.data.clean import Collector
from automixalign.data.read_task import open_task
from automixalign.data.split import split_tasks
from automixalign.data.task_pairs import check_rendering, read_candidates
from automixalign.models.inspect import is_at_hand, read_outline
from automixalign.models.load import device
from automixalign.models.prepare import inspect_base_model, transformers_silenced
from automixalign.models.quantized import check_installed
from automixalign.models.trainable import check_device, check_trainable, has_named_modules
from automixalign.preflight.names import check_names
from automixalign.report.facts.limits import merges_in_full
from automixalign.scoring.benchmarks.tasks import check_benchmarks
from automixalign.scoring.verifiers.registry import make_verifier
from automixalign.steps.step import current_step
from automixalign.steps.tracking import spool
from automixalign.storage import s3
from automixalign.storage.publication import check_free, check_writable
from automixalign.system.errors import ConfigError

_Location = TypeVar("_Location", SourceSpec, DecontaminationSpec)
_Spec = TypeVar("_Spec", SourceSpec, DecontaminationSpec, BaseModelSpec)


def plan(configuration: str, parts: Sequence[str]) -> Plan:
    """Check a configuration and its sources, and divide it among the stages.

    Args:
        configuration: JSON or YAML text.
        parts: the optional parts of the pipeline that runs it (`Experiment.parts`).

    Raises:
        ConfigError: a key is unknown, of a wrong type or impossible; or the pipeline has other parts.
        DataError, ModelError, StorageError: see `plan_experiment`.
    """
    data = parse_yaml(configuration, "the configuration")
    if not isinstance(data, dict):
        raise ConfigError(f"the configuration must be a mapping of keys, not {type(data).__name__}")
    experiment = parse_experiment(data, "the configuration")
    check_names(experiment)
    if experiment.parts != list(parts):
        raise ConfigError(
            f"the pipeline was compiled for an experiment with {_list_parts(parts)}, and this one has "
            f"{_list_parts(experiment.parts)}: compile a pipeline from this configuration"
        )
    record = current_step().record
    record.of_pipeline = True
    record.add_params(experiment.model_dump(mode="json"))
    return plan_experiment(experiment)


def _list_parts(parts: Sequence[str]) -> str:
    return " and ".join(parts)


def plan_experiment(experiment: Experiment) -> Plan:
    """Check the sources of an experiment, and divide it among the stages.

    Raises:
        ConfigError: a benchmark, a quantised model or the attention cannot run here.
        DataError, ModelError: a source does not exist.
        ConfigError: the judge's endpoint refuses a request, or gives no verdict.
        StorageError: a source on S3 does not exist, the output is not writable, or the model registry or the
            judge does not answer.
    """
    check_installed(experiment.loading.quantize)
    if experiment.attn_implementation == "flash_attention_2":
        from automixalign.scoring.logps.layout import check_installed as check_attention

        check_attention(experiment.attn_implementation)
    if experiment.attn_implementation == "flex_attention" and device().type == "cpu":
        current_step().warn(
            "attn_implementation: flex_attention is for GPUs, and this machine has none; stages on CPUs "
            "compute packed pairs with this project's own attention, as 'auto' does"
        )
    for sentence in merges_in_full(experiment):
        current_step().warn(sentence)
    benchmarks = check_benchmarks(experiment.benchmarks)
    uri = experiment.tracking.uri or os.environ.get(spool.URI)
    if experiment.registry is not None and uri is not None:
        from automixalign.steps.tracking.send import check_registry

        check_registry(uri)
    if experiment.evaluation.judge is not None:
        from automixalign.scoring.judge.client import Judge

        Judge(experiment.evaluation.judge).check()
    with s3.fewer_attempts():
        if experiment.output is not None:
            check_writable(experiment.output.to)  # before any other request
        experiment = pinned(experiment)
        base_model = parse_base_model(experiment.base_model.source, experiment.base_model.revision)
        fingerprints = {"base_model": base_model.fingerprint(), BENCHMARKS: benchmarks}
        for task in experiment.tasks:
            fingerprints[task.name] = _fingerprint(f"task {task.name}", task.sources)
        fingerprints[DECONTAMINATE] = _fingerprint("decontaminate", experiment.decontaminate)
        if experiment.output is not None:
            check_free(experiment.output.to, experiment.output.replace, experiment.identity)
    return Plan.of(experiment, fingerprints)


def _fingerprint(key: str, specs: Iterable[LocationSpec]) -> str:
    return " ".join(parse_data(key, spec).fingerprint() for spec in specs)


def pinned(experiment: Experiment) -> Experiment:
    """The experiment with the commits that the hub now resolves its revisions to."""

    def pin(key: str, sources: Iterable[_Location]) -> list[_Location]:
        return [_pinned(source, parse_data(key, source)) for source in sources]

    base_model = experiment.base_model
    return experiment.model_copy(
        update={
            "base_model": _pinned(base_model, parse_base_model(base_model.source, base_model.revision)),
            "tasks": [
                task.model_copy(update={"sources": pin(f"task {task.name}", task.sources)})
                for task in experiment.tasks
            ],
            "decontaminate": pin("decontaminate", experiment.decontaminate),
        }
    )


def _pinned(spec: _Spec, source: Source) -> _Spec:
    commit = source.commit() if isinstance(source, HubSource) else None
    return spec if commit is None else spec.model_copy(update={"revision": commit})


def check_one_machine(experiment: Experiment) -> None:
    """Check that one machine can run an experiment.

    Raises:
        ConfigError: the experiment needs several nodes, or a GPU that this machine has not.
    """
    check_device(experiment.training)
    if experiment.training.nodes > 1:
        raise ConfigError(
            f"training.nodes: {experiment.training.nodes} nodes need a cluster with Kubeflow Trainer "
            "(`ama submit`); on this machine set training.nodes=1"
        )


def check_local_sources(experiment: Experiment) -> None:
    """Check the data and the base model on this machine before any long work.

    This does not check the values of the model's weights, nor whether single pairs are too long.

    Raises:
        DataError: naming file and line, or the task.
        ModelError: naming the folder.
        ConfigError: `max_length`, `training.lora` or `training.trainable` does not fit the base model.
    """
    inspected = inspect_base_model(experiment.base_model, experiment.max_length)
    candidates = {}
    for task in experiment.tasks:
        if not all(map(is_here, task.sources)):
            continue
        with open_task(task, experiment.seed, make_verifier) as reader:
            candidates[task.name] = read_candidates(reader, experiment.seed, Collector(experiment.seed))
            if inspected is not None:
                with transformers_silenced():
                    check_rendering(reader, inspected[1], experiment)
    if len(candidates) == len(experiment.tasks):  # a prompt's split may depend on the other tasks
        split_tasks(candidates, experiment.split)
    if inspected is not None:
        from automixalign.scoring.logps.layout import layout_of

        layout_of(inspected[0].config, experiment.loading, on_cuda=True)
        with transformers_silenced():
            check_trainable(inspected[0], experiment.training)
    elif has_named_modules(experiment.training) and is_at_hand(experiment.base_model):
        with tempfile.TemporaryDirectory() as scratch, transformers_silenced():
            outline = read_outline(experiment.base_model, Path(scratch))
            check_trainable(outline.empty_model(), experiment.training)


def is_here(source: LocationSpec) -> bool:
    """Whether a source of rows can be read without a network."""
    return parse_data("", source).service is None
