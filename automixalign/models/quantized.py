"""A base model whose linear layers hold 4 or 8 bits a weight, through bitsandbytes, an optional package."""

import importlib.util
from typing import TYPE_CHECKING, Any

import torch

from automixalign.config.settings import Quantization
from automixalign.system.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKAGE = "bitsandbytes"


def check_installed(quantize: Quantization | None) -> None:
    """Check that this machine can quantise, if it has to.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    if quantize is not None and importlib.util.find_spec(PACKAGE) is None:
        raise ConfigError(
            f"training.lora.quantize: {quantize} needs {PACKAGE}, which is not installed here; "
            "try: pip install 'automixalign[quantize]'"
        )


def loading_options(quantize: Quantization, device: torch.device, bf16: bool) -> dict[str, Any]:
    """What `from_pretrained` needs to quantise all linear layers but the head.

    Args:
        quantize: bits of a weight.
        device: of the model, which cannot be moved afterwards.
        bf16: whether 4-bit weights are multiplied in bf16; otherwise in fp32. 8-bit ones always are in int8.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    check_installed(quantize)
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=quantize == "4bit",
        load_in_8bit=quantize == "8bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if bf16 else torch.float32,
    )
    if device.type == "cuda":  # with several processes, accelerate compares the index with the process's GPU
        device = torch.device("cuda", torch.cuda.current_device())
    return {"quantization_config": config, "device_map": {"": device}}


def train_as_scored(model: "PreTrainedModel") -> "PreTrainedModel":
    """Let a quantised model on the CPU compute in evaluation as in training; on CUDA it does so already.

    In evaluation, bitsandbytes would compute 4-bit layers in bf16 where the processor can, also in later
    training, and round the inputs of 8-bit layers to 8 bits.
    """
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
        elif isinstance(module, Linear8bitLt) and model.device.type == "cpu":
            module.register_forward_pre_hook(lambda layer, _: layer.train() and None)
    return model
