"""Which parameters a training changes: all of them, some by their names, or a LoRA adapter's."""

import re
from typing import TYPE_CHECKING, Any

from automixalign.config.training import LoraSpec, TrainingSpec
from automixalign.system.errors import ConfigError

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel


def freeze(model: "PreTrainedModel", trainable: list[str] | None) -> None:
    """Train only the parameters whose name one of the patterns finds.

    Raises:
        ConfigError: a pattern finds none.
    """
    if trainable is None:
        return
    names = [name for name, _ in model.named_parameters()]
    for pattern in trainable:
        if not any(re.search(pattern, name) for name in names):
            raise ConfigError(
                f"training.trainable: {pattern!r} finds no parameter; there are: {_listed(names)}"
            )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(re.search(pattern, name) for pattern in trainable))


def lora_config(model: "PreTrainedModel", lora: LoraSpec | None) -> "LoraConfig | None":
    """peft's configuration of the adapter, or None.

    Raises:
        ConfigError: a target is no module of the model, which peft lets pass beside another that is.
    """
    if lora is None:
        return None
    from peft import LoraConfig

    if not isinstance(lora.target_modules, str):
        names = [name for name, _ in model.named_modules() if name]
        for target in lora.target_modules:
            if not any(name == target or name.endswith(f".{target}") for name in names):
                known = sorted({name.rpartition(".")[2] for name in names if not name[-1].isdigit()})
                raise ConfigError(
                    f"training.lora.target_modules: {target!r} is no module of the base model; "
                    f"there are: {_listed(known)}"
                )
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=lora.target_modules,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )


def check(model: "PreTrainedModel", training: TrainingSpec) -> None:
    """See that a training finds what it is to change in a model, which this may spoil.

    Raises:
        ConfigError: `trainable` or `lora` do not fit the model.
    """
    freeze(model, training.trainable)
    config: Any = lora_config(model, training.lora)
    if config is not None:
        from peft import get_peft_model

        try:
            get_peft_model(model, config, low_cpu_mem_usage=True)
        except (ValueError, TypeError) as error:  # such as a module of a kind that LoRA cannot adapt
            raise ConfigError(f"training.lora: the base model does not take it: {error}") from error


def _listed(names: list[str]) -> str:
    return ", ".join(names[:40]) + (", ..." if len(names) > 40 else "")
