"""Choose the parameters that a training changes: all, some by their names, or those of a LoRA adapter."""

import re
from typing import TYPE_CHECKING

import torch

from automixalign.config.training import LoraSpec, TrainingSpec
from automixalign.models.load import device
from automixalign.system.errors import ConfigError

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

MAX_LISTED_NAMES = 40
"""Names that a message lists."""


def make_trainable(
    model: "PreTrainedModel", training: TrainingSpec, seed: int
) -> "PreTrainedModel | PeftModel":
    """Freeze what a training does not change, and add its adapter.

    Args:
        model: the start of the policy; it is changed.
        training: names the trained parameters, or describes the adapter.
        seed: of the adapter's first weights.

    Returns:
        The policy. Its trained parameters are in fp32.

    Raises:
        ConfigError: `trainable` or `lora` does not fit the model.
    """
    check_device(training)
    freeze(model, training.trainable)
    config, policy = lora_config(model, training.lora), model
    if config is not None:
        from peft import get_peft_model

        torch.manual_seed(seed)
        policy = get_peft_model(model, config)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.detach().float()
    return policy


def check_device(training: TrainingSpec) -> None:
    """Check that this machine's device can train an adapter.

    Raises:
        ConfigError: it cannot.
    """
    lora = training.lora
    # peft loses the scales of 8-bit weights when it computes their norms on a CPU.
    if lora is not None and lora.dora and lora.quantize == "8bit" and device().type == "cpu":
        raise ConfigError(
            "training.lora.dora: on a base of 8 bits it needs a GPU, and this machine has none; "
            "set quantize: 4bit"
        )


def freeze(model: "PreTrainedModel", trainable: list[str] | None) -> None:
    """Freeze every parameter whose name matches none of the patterns; None freezes nothing.

    Raises:
        ConfigError: a pattern matches no parameter.
    """
    if trainable is None:
        return
    names = [name for name, _ in model.named_parameters()]
    for pattern in trainable:
        if not any(re.search(pattern, name) for name in names):
            raise ConfigError(
                f"training.trainable: {pattern!r} matches no parameter; there are: {_shorten(names)}"
            )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(re.search(pattern, name) for pattern in trainable))


def lora_config(model: "PreTrainedModel", lora: LoraSpec | None) -> "LoraConfig | None":
    """Build peft's configuration of the adapter.

    Returns:
        None without `lora`.

    Raises:
        ConfigError: a target is no module of the model, which peft ignores if another target is one; or it is
            the head or an embedding that shares the head's weights.
    """
    if lora is None:
        return None
    from peft import LoraConfig

    if not isinstance(lora.target_modules, str):
        names = [name for name, _ in model.named_modules() if name]
        for target in lora.target_modules:
            targeted = [name for name in names if name == target or name.endswith(f".{target}")]
            if not targeted:
                suffixes = sorted({name.rpartition(".")[2] for name in names if not name[-1].isdigit()})
                raise ConfigError(
                    f"training.lora.target_modules: {target!r} is no module of the base model; "
                    f"there are: {_shorten(suffixes)}"
                )
            if unfit := [name for name in targeted if name in _unfit_for_lora(model)]:
                raise ConfigError(
                    f"training.lora.target_modules: {target!r} is {_shorten(unfit)}, the head of the base "
                    "model or tied to it; name modules of its layers, or write all-linear, which leaves it out"
                )
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=lora.target_modules,
        lora_dropout=0.0,
        use_dora=lora.dora,
        use_rslora=lora.rslora,
        task_type="CAUSAL_LM",
    )


def _unfit_for_lora(model: "PreTrainedModel") -> set[str]:
    """The head, and modules with tied weights: folding an adapter of one of these changes the other."""
    tied = model.all_tied_weights_keys
    weights = {*tied.keys(), *tied.values()}
    head = model.get_output_embeddings()
    return {
        name
        for name, module in model.named_modules()
        if f"{name}.weight" in weights or (head is not None and module is head)
    }


def has_named_modules(training: TrainingSpec) -> bool:
    """Whether a training names modules or parameters, which the base model may lack."""
    named = training.lora is not None and not isinstance(training.lora.target_modules, str)
    return named or training.trainable is not None


def check_trainable(model: "PreTrainedModel", training: TrainingSpec) -> None:
    """Check that `trainable` or `lora` fit a model. The model may be changed and must not be used afterwards.

    Raises:
        ConfigError: they do not fit.
    """
    freeze(model, training.trainable)
    if (config := lora_config(model, training.lora)) is not None:
        from peft import get_peft_model

        try:
            get_peft_model(model, config, low_cpu_mem_usage=True)
        except (ValueError, TypeError) as error:  # for example a kind of module that LoRA cannot adapt
            raise ConfigError(f"training.lora: it does not fit the base model: {error}") from error


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:MAX_LISTED_NAMES]) + (", ..." if len(names) > MAX_LISTED_NAMES else "")
