"""Refuse a model folder that asks for Python code, a pickle, or a file outside the folder.

Models are loaded from safetensors and without code of their folder. The checks say why a folder cannot be
loaded that way. They also refuse three things that the libraries accept:

- an index that lists a foreign file as a shard;
- an `attn_implementation` that names compiled code on the hub;
- an adapter without safetensors, for which peft loads a pickle.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from automixalign.system.errors import ModelError

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_WEIGHT_SUFFIXES = (".safetensors", ".gguf")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_KERNEL_KEYS = ("attn_implementation", "_attn_implementation", "experts_implementation")


def is_adapter(folder: Path) -> bool:
    """Whether a model folder holds a LoRA adapter rather than a full model."""
    return (folder / ADAPTER_CONFIG).is_file()


def check_model_folder(folder: Path) -> None:
    """Check a full model or an adapter.

    Raises:
        ModelError: the folder holds neither, or `check_full_model` or `check_adapter` refuses it.
    """
    if is_adapter(folder):
        check_adapter(folder)
    elif (folder / "config.json").is_file():
        check_full_model(folder)
    else:
        raise ModelError(f"{folder} holds neither a config.json nor an {ADAPTER_CONFIG}")


def check_full_model(folder: Path) -> None:
    """Refuse a full model that is not in safetensors, or asks for code.

    Raises:
        ModelError: naming the file and the key.
    """
    if is_adapter(folder):
        # transformers would load the base model that the adapter names, wherever it is.
        raise ModelError(
            f"{folder} holds an adapter ({ADAPTER_CONFIG}), not a full model: merge it into its base"
        )
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} holds no model.safetensors{_pickle_hint(folder)}")
    for index in folder.glob("*.index.json"):
        for shard in _values(_read_object(index).get("weight_map")):
            if not str(shard).endswith(_WEIGHT_SUFFIXES) or Path(str(shard)).name != shard:
                raise ModelError(
                    f"{index}: weight_map names {shard!r}, which is no safetensors file of this folder"
                )
    config = folder / "config.json"
    if config.is_file():
        for key, value in _nested_items(_read_object(config)):
            if key in _KERNEL_KEYS and any("/" in str(name) for name in _values(value)):
                raise ModelError(f"{config}: {key} is {value!r}, code from a hub, which is never fetched")


def check_adapter(folder: Path) -> None:
    """Refuse a folder that is not a LoRA adapter in safetensors.

    Raises:
        ModelError: naming the file.
    """
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ModelError(f"{folder} holds an {ADAPTER_CONFIG} but no {ADAPTER_WEIGHTS}{_pickle_hint(folder)}")
    config = _read_object(folder / ADAPTER_CONFIG)
    if config.get("peft_type") != "LORA" or config.get("megatron_config"):
        raise ModelError(f"{folder / ADAPTER_CONFIG}: only plain LoRA adapters can be loaded, not this one")


def _pickle_hint(folder: Path) -> str:
    pickles = sorted(file.name for file in folder.glob("*") if file.suffix in _PICKLE_SUFFIXES)
    if not pickles:
        return ""
    return f"; {pickles[0]} is a pickle, which can run code and is not opened: convert it to safetensors"


def _read_object(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} holds no JSON object")
    return data


def _nested_items(data: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """All keys and values, also of the parts of a composite model."""
    for key, value in data.items():
        yield key, value
        if isinstance(value, dict):
            yield from _nested_items(value)


def _values(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return [] if value is None else [value]
