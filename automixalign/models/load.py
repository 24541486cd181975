"""Load policies and tokenizers from a folder: a full model, or a LoRA adapter and its base.

Every model is loaded here or in `prepare`: from safetensors only, and never with the folder's own code.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from automixalign.config.settings import PLAIN, Loading
from automixalign.models.quantized import loading_options, train_as_scored
from automixalign.models.rope import treat_rows_alone
from automixalign.models.safety import check_adapter, check_full_model, is_adapter
from automixalign.system import mkl
from automixalign.system.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

mkl.load_kernels()


def device() -> torch.device:
    """CUDA if it is available, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(precision: str) -> "torch.autocast":
    """Return the context of a forward pass: bf16 autocast, or no autocast for fp32."""
    return torch.autocast(device().type, dtype=torch.bfloat16, enabled=uses_bf16(precision))


def uses_bf16(precision: str) -> bool:
    """Whether `precision` means bf16; `auto` does on CUDA with bf16 support."""
    if precision == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return precision == "bf16"


def resolved(precision: str) -> str:
    """`fp32` or `bf16`, whichever a precision means on this machine."""
    return "bf16" if uses_bf16(precision) else "fp32"


def weights_dtype(loading: Loading, precision: str) -> torch.dtype | str:
    """The dtype in which a stage holds weights; `auto` is transformers' name of the source's own."""
    if not uses_bf16(precision):
        return torch.float32
    if loading.dtype == "source":
        return "auto"
    return torch.bfloat16 if loading.dtype == "bf16" else torch.float32


def load_tokenizer(folder: Path, max_length: int | None = None) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a model folder; `pad_token` defaults to its end-of-sequence token.

    Args:
        folder: the model folder.
        max_length: tokens of the longest sequence that the model must accept; None skips this check.

    Raises:
        ModelError: the folder holds no tokenizer, or, with `max_length`, no model configuration.
        ConfigError: the model accepts fewer than `max_length` tokens.
    """
    from transformers import AutoTokenizer

    if max_length is not None:
        check_positions(load_config(folder), max_length)
    # Without a value for `trust_remote_code`, transformers asks a question at the terminal.
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds, tokenizers a bare Exception
        raise ModelError(f"{folder} holds no tokenizer that can be loaded: {failure_reason(error)}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(folder: Path) -> "PretrainedConfig":
    """Load the configuration of the model in a folder.

    Raises:
        ModelError: the folder holds no model configuration.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise ModelError(f"{folder} holds no configuration of a model: {failure_reason(error)}") from error


def check_positions(config: "PretrainedConfig", max_length: int) -> None:
    """Check by its configuration that a model accepts sequences of `max_length` tokens.

    Raises:
        ConfigError: it has fewer positions, and no RoPE scaling that extends them.
    """
    positions = position_limit(config)
    if positions is not None and max_length > positions:
        raise ConfigError(f"max_length: the base model has {positions} positions; set it to that at most")


def position_limit(config: "PretrainedConfig") -> int | None:
    """The number of tokens that a model accepts; None without limit, or with a RoPE scaling that extends it."""
    scaling = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    return (getattr(config, "max_position_embeddings", None) or None) if scaling == "default" else None


def load_model(
    folder: Path, base_model: Path | None, loading: Loading = PLAIN, precision: str = "fp32"
) -> "PreTrainedModel":
    """Load a policy for scoring or generation, with the weights that `full_model` writes.

    An adapter of a quantised base is not folded: the sum would have to be rounded to the base's few bits.

    Args:
        folder: a full model, or a LoRA adapter.
        base_model: the base model of an adapter; a full model needs none.
        loading: how to hold it in memory; by default in fp32.
        precision: of its forward passes.

    Raises:
        ModelError: the folder holds no model, or an adapter whose base model is missing.
    """
    if not is_adapter(folder):
        return load_full_model(folder, loading, precision)
    if base_model is None:
        raise ModelError(f"{folder} holds an adapter, which cannot be loaded without its base model")
    if loading.quantize is not None:
        adapted = load_adapter(load_full_model(base_model, loading, precision), folder)
        quantized: PreTrainedModel = adapted.get_base_model()
        return quantized
    model, dtypes = fold_adapter(folder, base_model), stored_dtypes(base_model)
    dtype = weights_dtype(loading, precision)
    for name, weight in model.named_parameters():
        rounded = weight.detach().to(dtypes.get(name, weight.dtype))
        weight.data = rounded if isinstance(dtype, str) else rounded.to(dtype)
    return model.to(device())


def fold_adapter(folder: Path, base_model: Path) -> "PreTrainedModel":
    """Add a LoRA adapter to its base model in fp32, in the CPU's memory: devices differ in their rounding.

    Raises:
        ModelError: a folder holds no model, or the adapter is one of another base.
    """
    adapted = load_adapter(read_full_model(base_model, dtype=torch.float32), folder)
    model: PreTrainedModel = adapted.merge_and_unload()
    return model


def stored_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """The dtype of every weight of a full model, by name, as transformers loads it by default.

    Raises:
        ModelError: the folder holds no full model in safetensors.
    """
    # Without memory for the weights.
    model = read_full_model(folder, dtype="auto", device_map="meta")
    return {name: weight.dtype for name, weight in model.state_dict().items()}


def load_full_model(
    folder: Path, loading: Loading = PLAIN, precision: str = "fp32", **options: Any
) -> "PreTrainedModel":
    """Load a full model onto the device; `options` go to transformers.

    Args:
        folder: the full model.
        loading: how to hold it in memory; by default in fp32.
        precision: of its forward passes.

    Raises:
        ModelError: the folder holds no full model in safetensors.
        ConfigError: `loading` quantises it, and bitsandbytes is not installed.
    """
    dtype = weights_dtype(loading, precision)
    if loading.quantize is not None:
        options |= loading_options(loading.quantize, device(), uses_bf16(precision))
        return train_as_scored(read_full_model(folder, dtype=dtype, **options))
    model = read_full_model(folder, dtype=dtype, **options)
    for name, weight in model.named_parameters():
        if any(re.search(pattern, name) for pattern in loading.trained):
            weight.data = weight.detach().float()
    return model.to(device())


def read_full_model(folder: Path, dtype: "torch.dtype | str", **options: Any) -> "PreTrainedModel":
    """Load a full model into the CPU's memory; `options` go to transformers.

    Raises:
        ModelError: the folder holds no full model in safetensors.
    """
    from transformers import AutoModelForCausalLM

    check_full_model(folder)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, **options
        )
    except Exception as error:  # transformers raises many kinds, safetensors its own
        raise ModelError(f"{folder} holds no causal language model: {failure_reason(error)}") from error
    treat_rows_alone(model)
    return model


def failure_reason(error: Exception) -> str:
    """Why transformers cannot load a folder, without its advice to run the folder's code."""
    if "trust_remote_code" in str(error):
        return "it needs Python code of its own, which is never run; use one that transformers knows"
    return str(error)


def load_adapter(model: "PreTrainedModel", folder: Path, **options: Any) -> Any:
    """Add the LoRA adapter in a folder to a model; `options` go to peft.

    Raises:
        ModelError: the folder holds no LoRA adapter in safetensors, or an adapter of another model.
    """
    from peft import PeftModel

    check_adapter(folder)
    try:
        return PeftModel.from_pretrained(model, folder, **options)
    except Exception as error:
        raise ModelError(f"{folder} holds no LoRA adapter of this model: {error}") from error


def forget_code(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Remove the address of the model's own code from its configuration before it is saved."""
    if hasattr(model.config, "auto_map"):
        del model.config.auto_map
    tokenizer.init_kwargs.pop("auto_map", None)
