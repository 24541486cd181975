"""Bring the base model into one normal form: a folder with safetensors, tokenizer and config.

The weights have the dtype of the source; those of a GGUF file become fp32. `base_model.json` has the address of
a base model that other programs can load.
"""

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automixalign.config.models import BaseModelSettings, BaseModelSpec
from automixalign.config.sources import BaseModelSource, LocalSource, parse_base_model
from automixalign.models.base_address import address_of
from automixalign.models.safety import check_full_model
from automixalign.steps.step import current_step
from automixalign.storage import files
from automixalign.system.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from automixalign.quickstart.spec import TinyModel

_GGUF = ".gguf"


def prepare_base_model(settings: BaseModelSettings, output: Path) -> dict[str, Any]:
    """Write the base model of an experiment to `output`.

    Returns:
        Metadata: source, number of parameters, architecture.

    Raises:
        ModelError: the source does not exist, or holds no causal language model with a tokenizer.
        StorageError: a source on S3 cannot be fetched.
    """
    spec = settings.base_model
    with files.replacing(output) as folder:
        facts = _train_tiny(settings, spec.tiny, folder) if spec.tiny else _convert(spec, folder)
    return {"source": spec.source, **facts}


def _train_tiny(settings: BaseModelSettings, tiny: "TinyModel", folder: Path) -> dict[str, Any]:
    from automixalign.models.weights import first_nonfinite_weight
    from automixalign.quickstart.synthetic import SYNTHETIC_TASKS
    from automixalign.quickstart.tiny_model import train_tiny_model

    tasks = settings.synthetic_tasks or list(SYNTHETIC_TASKS)
    facts = train_tiny_model(folder, tiny, tasks, settings.seed)
    if name := first_nonfinite_weight(folder):
        raise ModelError(
            f"base_model.tiny: its training diverged, the weight {name} is not finite: lower "
            "base_model.tiny.learning_rate"
        )
    return dict(facts)


def _convert(spec: BaseModelSpec, folder: Path) -> dict[str, Any]:
    import torch

    from automixalign.models.base_card import write_base_card
    from automixalign.models.generate import write_ends
    from automixalign.models.load import forget_code

    source = parse_base_model(spec.source, spec.revision)
    with tempfile.TemporaryDirectory() as scratch:
        path = source.fetch(Path(scratch))
        model, tokenizer = _load(source, path, spec.revision)
        for name, weight in model.named_parameters():
            if not torch.isfinite(weight).all():
                raise ModelError(f"{source.label}: the weight {name} is not finite")
        if path is not None and path.suffix == _GGUF:
            _forget_quantisation(model)
        rows = _embedding_rows(model)
        if tokenizer.pad_token is None or tokenizer.pad_token_id >= rows:  # generation looks up its row
            tokenizer.pad_token = tokenizer.eos_token
        forget_code(model, tokenizer)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_base_card(source, path, folder)
    # For more tokens than rows, peft would enlarge the embedding, which changes all probabilities.
    if (at := address_of(spec)) is not None and len(tokenizer) <= rows:
        at.write(folder)
    ends, changes = write_ends(folder, tokenizer)
    if changes:
        told = ", ".join(f"{key}={value!r:.40}" for key, value in changes.items())
        current_step().warn(
            f"{source.label}: its generation config sets {told}; greedy answers follow it, as in transformers"
        )
    return {
        "parameters": model.num_parameters(),
        "architecture": type(model).__name__,
        "ends": tokenizer.convert_ids_to_tokens(ends),
    }


def inspect_base_model(
    spec: BaseModelSpec, max_length: int
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase] | None":
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
    source = parse_base_model(spec.source, spec.revision)
    if not isinstance(source, LocalSource) or source.path.suffix == _GGUF:
        return None
    from automixalign.models.load import check_positions

    with transformers_silenced():
        model, tokenizer = _load(source, source.path, device_map="meta")
    check_positions(model.config, max_length)
    return model, tokenizer


@contextmanager
def transformers_silenced() -> Iterator[None]:
    """Switch off the progress bars, reports and warnings of transformers."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of options that have a new name
            yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def address(
    source: BaseModelSource, path: Path | None, revision: str | None = None
) -> tuple[str, dict[str, Any]]:
    """How transformers finds a base model: the folder or hub id, and further arguments.

    Args:
        source: the base model.
        path: its folder or GGUF file; None for one on the hub.
        revision: of one on the hub.
    """
    if path is None:
        return source.text, {"revision": revision}
    if path.suffix == _GGUF:
        return str(path.parent), {"gguf_file": path.name}
    return str(path), {}


def _load(source: BaseModelSource, path: Path | None, revision: str | None = None, **options: Any) -> Any:
    """Load model and tokenizer from `path`, or from the hub if it is None."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from automixalign.models.load import failure_reason

    folder, common = address(source, path, revision)
    is_gguf = path is not None and path.suffix == _GGUF
    try:
        if path is not None and not is_gguf:
            check_full_model(path)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **common)
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32 if is_gguf else "auto",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # the error does not name the weight; the report does
            trust_remote_code=False,
            use_safetensors=not is_gguf,
            **common,
            **options,
        )
    except Exception as error:  # transformers raises many kinds, tokenizers a bare Exception
        raise ModelError(f"{source.label} cannot be loaded: {failure_reason(error)}") from error
    if missing := sorted(report["missing_keys"]):  # transformers leaves them random
        raise ModelError(f"{source.label}: {len(missing)} weights are missing, first {missing[0]}")
    for name, actual, expected in sorted(report["mismatched_keys"]):
        raise ModelError(
            f"{source.label}: the weight {name} is {list(actual)}, but config.json needs {list(expected)}"
        )
    if tokenizer.eos_token is None:
        raise ModelError(f"{source.label}: its tokenizer has no end-of-sequence token")
    if tokenizer.eos_token_id >= (rows := _embedding_rows(model)):
        raise ModelError(
            f"{source.label}: its end-of-sequence token {tokenizer.eos_token!r} has the id "
            f"{tokenizer.eos_token_id}, and its embedding has only {rows} rows"
        )
    return model, tokenizer


def _embedding_rows(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _forget_quantisation(model: Any) -> None:
    """Let `save_pretrained` write weights that were dequantised while a GGUF file was loaded."""
    for name in ("hf_quantizer", "quantization_method", "_is_quantized"):
        if hasattr(model, name):
            setattr(model, name, None)
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
