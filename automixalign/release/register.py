"""MLflow's model registry: a run's chosen model becomes a version, and the champion if it passes the gate.

Users load `models:/NAME@champion` (https://mlflow.org/docs/latest/ml/model-registry/). A version is a full
model in safetensors, with its tokenizer and chat template. An adapter is merged into its base model, so that a
version needs nothing else. Its description and tags say how it was made. Choice and gate use the numbers of the
validation split; those of the test split are only reported. The alias `candidate` always moves to the newest
version, the alias `champion` only when the gate passes.
"""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from automixalign.config.experiment import RegistrySettings
from automixalign.config.release import RegistrySpec
from automixalign.data.store import TEST, VALIDATION, read_card
from automixalign.models.base_card import read_licence
from automixalign.models.full_model import write_full_model
from automixalign.models.load import load_tokenizer, read_full_model, uses_bf16
from automixalign.release.model_card import RunFacts, base_name, model_card, plain
from automixalign.report.leaderboard import Entry, choice, chosen
from automixalign.steps.step import current_step
from automixalign.steps.tracking import spool
from automixalign.storage import files
from automixalign.system.errors import ConfigError
from automixalign.system.provenance import git_commit, versions

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

CANDIDATE, CHAMPION = "candidate", "champion"
_TAG, _WORST_GAP = "automixalign.", "validation_worst_gap"
_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "accelerate")
_QUESTION = [{"role": "user", "content": "Hello"}]


def register(
    settings: RegistrySettings,
    board: Path,
    candidates: Mapping[str, Path],
    *,
    data: Path,
    base_model: Path,
    output: Path,
    costs: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Register the model that the leaderboard chooses; it becomes the champion if it passes the gate.

    A model that already is a version (same weights, same data) is not stored again.

    Args:
        settings: of the stage.
        board: the leaderboard.
        candidates: generalists and merges by name, full models or adapters.
        data: the prepared splits.
        base_model: the reference model, with the tokenizer.
        output: the file for what is returned, as JSON.
        costs: generalist -> what its training returned.

    Returns:
        `name`, `model`, `version`, `champion` (whether the gate passed), and `reasons` if it did not.

    Raises:
        ConfigError: no MLflow store is known, or no model is chosen.
        StorageError: the registry refuses the model; `UnreachableError` if it cannot be reached.
    """
    spec, process_spool = settings.registry, spool.of_environment()
    target = None if process_spool is None else process_spool.target()
    if process_spool is None or target is None:
        raise ConfigError("an MLflow store (MLFLOW_TRACKING_URI) is needed to register a model")
    entries: list[Entry] = files.read_json(board)
    entry = chosen(entries)
    if entry is None:
        raise ConfigError(
            "registry: no model is chosen without a validation split; set split.validation above 0"
        )
    model = candidates[entry["model"]]
    tags = _lineage(settings, entry, model, data=data, base_model=base_model)

    from automixalign.steps.tracking.send import client, named_errors, opened_target

    failure = f"{entry['model']} cannot be registered as {spec.name} (the run's own results are complete)"
    with named_errors(failure):
        target = opened_target(process_spool, target)
        registry = client(target)
        if target.run_id is not None:
            tags[_TAG + "run_id"] = target.run_id
        _ensure_registered_model(registry, spec.name)
        number = _find_version(registry, spec.name, tags)
        if number is None:
            facts = RunFacts(
                experiment=settings.experiment,
                entries=entries,
                data=data,
                base_model=base_model,
                costs=costs or {},
                versions=versions(),
                library=settings.code,
                commit=git_commit(),
            )
            card = model_card(facts, entry["model"])
            uri, run_id = _store(target, registry, settings, model, base_model, entry["model"], card)
            version_facts = {"run_id": run_id, "model_id": uri.removeprefix("models:/"), "tags": tags}
            text = _description(settings, entry, _run_link(target, registry), read_licence(base_model))
            number = str(
                registry.create_model_version(spec.name, uri, description=text, **version_facts).version
            )
        reasons = gate(spec, entry, tags, _champion(registry, spec.name))
        registry.set_registered_model_alias(spec.name, CANDIDATE, number)
        if not reasons:
            registry.set_registered_model_alias(spec.name, CHAMPION, number)
    result: dict[str, Any] = {"name": spec.name, "model": entry["model"], "version": number}
    result |= {"champion": not reasons, "reasons": reasons}
    files.write_json(output, result)
    record = current_step().record
    record.add_params(result)
    record.tags |= tags
    return result


def gate(
    spec: RegistrySpec, entry: Entry, tags: Mapping[str, str], champion: Mapping[str, str] | None
) -> list[str]:
    """Why a model may not become the champion, by its numbers on the validation split; empty if it may.

    Args:
        spec: the limits of the gate.
        entry: the model's line in the leaderboard.
        tags: the tags of its version.
        champion: the tags of the current champion's version, or None.
    """
    validation = entry[VALIDATION]
    gap, excess = validation["worst"]["gap"], validation["worst"]["excess"]
    accuracy = validation["average"]["accuracy"]
    reasons = []
    if spec.max_worst_gap is not None and gap > spec.max_worst_gap:
        reasons.append(f"its worst-task gap {gap:.4f} is above {spec.max_worst_gap:g}")
    if spec.max_worst_excess is not None and excess > spec.max_worst_excess:
        reasons.append(f"its worst-task excess {excess:.4f} is above {spec.max_worst_excess:g}")
    if spec.min_accuracy is not None and accuracy < spec.min_accuracy:
        reasons.append(f"its mean accuracy {accuracy:.3f} is below {spec.min_accuracy:g}")
    if champion is None or not spec.beat_champion or champion.get(_TAG + "model") == tags[_TAG + "model"]:
        return reasons
    if champion.get(_TAG + "data") != tags[_TAG + "data"]:
        reasons.append(
            "the champion was measured on other data; set registry.beat_champion to false to replace it"
        )
    elif (limit := champion.get(_TAG + _WORST_GAP)) is None:
        reasons.append(
            "the champion has no worst-task gap of a validation split, because an earlier version of this "
            "project registered it; set registry.beat_champion to false to replace it"
        )
    elif gap > float(limit):
        reasons.append(f"its worst-task gap {gap:.4f} is above the champion's {float(limit):.4f}")
    return reasons


def _lineage(
    settings: RegistrySettings, entry: Entry, model: Path, data: Path, base_model: Path
) -> dict[str, str]:
    """The tags of a version: everything needed to identify it and to make it again."""
    experiment = settings.experiment
    digests = "".join(task["digest"] for task in read_card(data)["tasks"])
    licence = read_licence(base_model)
    facts = {
        "method": entry["model"],
        "family": entry["family"],
        "experiment": experiment.name,
        "seed": experiment.seed,
        "config": hashlib.sha256(experiment.model_dump_json().encode()).hexdigest(),
        "library": settings.code,
        "data": hashlib.sha256(digests.encode()).hexdigest(),
        "tasks": ",".join(task.name for task in experiment.tasks),
        "base_model": experiment.base_model.source,
        "base_model_digest": files.digest(base_model),
        "base_model_licence": licence.get("license_name") or licence.get("license", ""),
        "model": files.digest(model),
        _WORST_GAP: entry[VALIDATION]["worst"]["gap"],
        "test_worst_gap": entry["worst"]["gap"],
        "test_worst_excess": entry["worst"]["excess"],
        "test_average_accuracy": entry["average"]["accuracy"],
        "kfp_run": os.environ.get("KFP_RUN_ID", ""),
    }
    return {_TAG + key: str(value) for key, value in facts.items() if value != ""}


def _description(settings: RegistrySettings, entry: Entry, run: str, licence: Mapping[str, Any]) -> str:
    """A version's description, in Markdown."""
    experiment = settings.experiment
    terms = plain(licence.get("license_name") or licence.get("license") or "")
    lines = [
        f"`{entry['model']}`, a {entry['family']} of {run}, made from the base model "
        f"`{plain(base_name(experiment))}` by [AutoMixAlign](https://arxiv.org/abs/2506.00569).",
        f"Tasks: {', '.join(task.name for task in experiment.tasks)}. Seed: {experiment.seed}. "
        f"Licence of the base model: {f'`{terms}`' if terms else 'unknown'}.",
        choice([entry]),
        "| split | worst gap | worst excess | worst accuracy |\n| --- | --- | --- | --- |\n"
        + "\n".join(
            f"| {split} | {worst['gap']:.4f} | {worst['excess']:.4f} | {worst['accuracy']:.3f} |"
            for split, worst in ((VALIDATION, entry[VALIDATION]["worst"]), (TEST, entry["worst"]))
        ),
    ]
    return "\n\n".join(lines)


def _run_link(target: spool.Target, registry: Any) -> str:
    """The run of the pipeline, as a link within MLflow's pages."""
    if target.run_id is None:
        return "a run"
    info = registry.get_run(target.run_id).info
    return f"the run [{info.run_name}](#/experiments/{info.experiment_id}/runs/{info.run_id})"


def _ensure_registered_model(registry: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        registry.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        registry.create_registered_model(name)


def _champion(registry: Any, name: str) -> dict[str, str] | None:
    aliases = registry.get_registered_model(name).aliases
    return dict(registry.get_model_version(name, aliases[CHAMPION]).tags) if CHAMPION in aliases else None


def _find_version(registry: Any, name: str, tags: Mapping[str, str]) -> str | None:
    """The version of this model and data, if an earlier run created it."""
    same = (_TAG + "model", _TAG + "data")
    versions = registry.search_model_versions(f"name = '{name}'")
    matching = (each for each in versions if all(each.tags.get(key) == tags[key] for key in same))
    return next((str(each.version) for each in matching), None)


def _store(
    target: spool.Target,
    registry: Any,
    settings: RegistrySettings,
    model: Path,
    base_model: Path,
    name: str,
    card: "ModelCard",
) -> tuple[str, str]:
    """Log the model as a full one; return its `models:/` URI and the run that logged it."""
    import mlflow

    from automixalign.steps.tracking.send import experiment_id

    mlflow.set_tracking_uri(target.uri)
    tokenizer = load_tokenizer(base_model)
    chat = tokenizer.chat_template is not None
    tags = {"automixalign.stage": "register"}
    if target.run_id is not None:
        experiment = registry.get_run(target.run_id).info.experiment_id
        tags["mlflow.parentRunId"] = target.run_id
    else:
        experiment = experiment_id(registry, target)
    run = registry.create_run(experiment, tags=tags, run_name=f"model {name}")
    with mlflow.start_run(run_id=run.info.run_id), tempfile.TemporaryDirectory() as scratch:
        write_full_model(model, base_model, Path(scratch) / name)
        full_model = read_full_model(Path(scratch) / name, dtype="auto")
        # MLflow's server tells this to its clients, in place of a folder of this machine.
        full_model.name_or_path = f"models:/{settings.registry.name}"
        logged = mlflow.transformers.log_model(
            {"model": full_model, "tokenizer": tokenizer},
            name=name,
            # As in the evaluation. Without it, MLflow's server draws tokens; a request may set `max_tokens`.
            model_config={
                "do_sample": False,
                "num_beams": 1,
                "max_new_tokens": settings.experiment.evaluation.max_new_tokens,
            },
            # What loads it computes as the evaluation does, also with weights in bf16.
            torch_dtype=None if uses_bf16(settings.experiment.evaluation.precision) else torch.float32,
            task="llm/v1/chat" if chat else "text-generation",
            model_card=card,
            input_example={"messages": _QUESTION} if chat else "Hello",
            pip_requirements=[f"{package}=={version(package)}" for package in (*_PACKAGES, "mlflow")],
        )
    return str(logged.model_uri), str(run.info.run_id)
