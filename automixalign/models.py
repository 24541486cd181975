"""Load policies and tokenizers from a folder: a full model, or a LoRA adapter beside its base."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from automixalign.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADAPTER = "adapter_config.json"


def device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(precision: str) -> "torch.autocast":
    """The context a forward pass runs in: bf16 autocast, or nothing for fp32."""
    return torch.autocast(device().type, dtype=torch.bfloat16, enabled=uses_bf16(precision))


def uses_bf16(precision: str) -> bool:
    """`auto` is bf16 on CUDA that has it, and fp32 elsewhere."""
    if precision == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return precision == "bf16"


def is_adapter(folder: Path) -> bool:
    """Whether a model folder holds a LoRA adapter rather than a full model."""
    return (folder / ADAPTER).exists()


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Load the tokenizer saved in a model folder; `pad_token` is its end-of-sequence token if it has none."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(folder: Path, base_model: Path) -> "PreTrainedModel":
    """Load a policy in fp32 for scoring or generation: a LoRA adapter is put on `base_model` and folded in.

    Raises:
        ModelError: the folder holds no model.
    """
    if is_adapter(folder):
        from peft import PeftModel

        return PeftModel.from_pretrained(load_full_model(base_model), folder).merge_and_unload()
    return load_full_model(folder)


def load_full_model(folder: Path, **options: Any) -> "PreTrainedModel":
    """Load a full model in fp32 onto the device, from safetensors only and without remote code.

    Raises:
        ModelError: the folder holds no such model.
    """
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, **options
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} holds no causal language model: {error}") from error
    return model.to(device())
