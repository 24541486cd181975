"""MLflow's model registry: the best model of a run becomes a version, and the champion if it passes the gate.

https://mlflow.org/docs/latest/ml/model-registry/ - consumers load `models:/NAME@champion`. A version is a full
model in safetensors with its tokenizer and chat template (an adapter is folded into its base, so that a version
stands alone); its tags say what made it. The alias `candidate` always moves to the newest version, `champion`
only when the gate passes.
"""

import hashlib
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from automixalign.config.experiment import RegistrySettings
from automixalign.config.release import RegistrySpec
from automixalign.data.store import read_card
from automixalign.models.load import load_model, load_tokenizer
from automixalign.report.leaderboard import Entry, best
from automixalign.steps.step import current_step
from automixalign.steps.tracking import spool
from automixalign.storage import files
from automixalign.system.errors import ConfigError

CANDIDATE, CHAMPION = "candidate", "champion"
_TAG = "automixalign."
_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "accelerate")
_QUESTION = [{"role": "user", "content": "Hello"}]


def register(
    settings: RegistrySettings,
    board: Path,
    candidates: Mapping[str, Path],
    data: Path,
    base_model: Path,
    output: Path,
) -> dict[str, Any]:
    """Register the model with the smallest worst-task excess; move the champion's alias if the gate passes.

    A model that is a version already (same weights, same data) is not stored again.

    Args:
        board: the leaderboard.
        candidates: generalists and merges by name, full models or adapters.
        output: JSON of what is returned.

    Returns:
        name, model, version, and `champion`: whether the gate passed, with `reasons` where it did not.

    Raises:
        ConfigError: no MLflow store is known.
        StorageError: the registry refuses; as `UnreachableError`, it cannot be reached.
    """
    spec, target = settings.registry, _target()
    if target is None:
        raise ConfigError("an MLflow store (MLFLOW_TRACKING_URI) is needed to register a model")
    entries: list[Entry] = files.read_json(board)
    chosen = best([entry for entry in entries if entry["model"] in candidates], "worst", "excess")
    assert chosen is not None  # noqa: S101  there is a generalist, and every model has an excess
    entry = next(entry for entry in entries if entry["model"] == chosen)
    tags = _lineage(settings, entry, candidates[chosen], data, base_model)

    from automixalign.steps.tracking.send import client, named_errors

    with named_errors(f"{chosen} cannot be registered as {spec.name} (the run's own results are whole)"):
        registry = client(target)
        _see_registered_model(registry, spec.name)
        number = _version_of(registry, spec.name, tags)
        if number is None:
            uri = _store(target, registry, candidates[chosen], base_model, chosen)
            made = registry.create_model_version(
                spec.name, uri, tags=tags, model_id=uri.removeprefix("models:/")
            )
            number = str(made.version)
        reasons = gate(spec, entry, tags, _champion(registry, spec.name))
        registry.set_registered_model_alias(spec.name, CANDIDATE, number)
        if not reasons:
            registry.set_registered_model_alias(spec.name, CHAMPION, number)
    result = {
        "name": spec.name,
        "model": chosen,
        "version": number,
        "champion": not reasons,
        "reasons": reasons,
    }
    files.write_json(output, result)
    record = current_step().record
    record.add_params(result)
    record.tags |= tags
    return result


def gate(
    spec: RegistrySpec, entry: Entry, tags: Mapping[str, str], champion: Mapping[str, str] | None
) -> list[str]:
    """Why a model may not become the champion; empty where it may.

    Args:
        entry: its line of the leaderboard.
        tags: its version's.
        champion: the tags of the present champion, or None.
    """
    worst, accuracy = entry["worst"]["excess"], entry["average"]["accuracy"]
    reasons = []
    if spec.max_worst_excess is not None and worst > spec.max_worst_excess:
        reasons.append(f"its worst-task excess {worst:.4f} is above {spec.max_worst_excess:g}")
    if spec.min_accuracy is not None and accuracy < spec.min_accuracy:
        reasons.append(f"its mean accuracy {accuracy:.3f} is below {spec.min_accuracy:g}")
    if champion is None or not spec.beat_champion or champion.get(_TAG + "model") == tags[_TAG + "model"]:
        return reasons
    if champion.get(_TAG + "data") != tags[_TAG + "data"]:
        reasons.append(
            "the champion was measured on other data; set registry.beat_champion to false to replace it"
        )
    elif worst > float(champion[_TAG + "worst_excess"]):
        held = float(champion[_TAG + "worst_excess"])
        reasons.append(f"its worst-task excess {worst:.4f} is above the champion's {held:.4f}")
    return reasons


def _target() -> spool.Target | None:
    waiting = spool.of_environment()
    return waiting.target() if waiting else None


def _lineage(
    settings: RegistrySettings, entry: Entry, model: Path, data: Path, base_model: Path
) -> dict[str, str]:
    """Everything needed to say what a version is and to make it again."""
    experiment = settings.experiment
    digests = "".join(task["digest"] for task in read_card(data)["tasks"])
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
        "model": files.digest(model),
        "worst_excess": entry["worst"]["excess"],
        "average_excess": entry["average"]["excess"],
        "average_accuracy": entry["average"]["accuracy"],
        "kfp_run": os.environ.get("KFP_RUN_ID", ""),
    }
    return {_TAG + key: str(value) for key, value in facts.items() if value != ""}


def _see_registered_model(registry: Any, name: str) -> None:
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


def _version_of(registry: Any, name: str, tags: Mapping[str, str]) -> str | None:
    """The version that holds this model measured on this data, if a run before this one made it."""
    same = (_TAG + "model", _TAG + "data")
    for made in registry.search_model_versions(f"name = '{name}'"):
        if all(made.tags.get(key) == tags[key] for key in same):
            return str(made.version)
    return None


def _store(target: spool.Target, registry: Any, model: Path, base_model: Path, name: str) -> str:
    """Log the model once, as a full one; return its `models:/` URI, which the version then points to."""
    import mlflow

    mlflow.set_tracking_uri(target.uri)
    tokenizer = load_tokenizer(base_model)
    chat = tokenizer.chat_template is not None
    tags = {"automixalign.stage": "register"}
    if target.run_id is not None:
        experiment = registry.get_run(target.run_id).info.experiment_id
        tags["mlflow.parentRunId"] = target.run_id
    else:
        experiment = mlflow.set_experiment(target.experiment or "automixalign").experiment_id
    run = registry.create_run(experiment, tags=tags, run_name=f"model {name}")
    with mlflow.start_run(run_id=run.info.run_id):
        logged = mlflow.transformers.log_model(
            {"model": load_model(model, base_model), "tokenizer": tokenizer},
            name=name,
            task="llm/v1/chat" if chat else "text-generation",
            input_example={"messages": _QUESTION} if chat else "Hello",
            pip_requirements=[f"{package}=={version(package)}" for package in (*_PACKAGES, "mlflow")],
        )
    return str(logged.model_uri)
