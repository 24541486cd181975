"""What a model folder from elsewhere may not ask for: Python code, a pickle, or a file outside of it.

Loading itself asks for safetensors and never for a folder's own code; this says why a folder cannot be loaded
that way, and closes the side doors: an index may call any file a shard, an `attn_implementation` may be a
repository of compiled code on the hub, and an adapter without safetensors is looked for as a pickle.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from automixalign.system.errors import ModelError

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_WEIGHTS = (".safetensors", ".gguf")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_CODE_BY_NAME = ("attn_implementation", "_attn_implementation", "experts_implementation")


def is_adapter(folder: Path) -> bool:
    """Whether a model folder holds a LoRA adapter rather than a full model."""
    return (folder / ADAPTER_CONFIG).is_file()


def check(folder: Path) -> None:
    """Refuse a full model or an adapter as below, and a folder that holds neither.

    Raises:
        ModelError: naming the file and the key.
    """
    if is_adapter(folder):
        check_adapter(folder)
    elif (folder / "config.json").is_file():
        check_model(folder)
    else:
        raise ModelError(f"{folder} holds neither a config.json nor an {ADAPTER_CONFIG}")


def check_model(folder: Path) -> None:
    """Refuse a full model that is not in safetensors, or asks for code.

    Raises:
        ModelError: naming the file and the key.
    """
    if is_adapter(folder):
        # transformers would look for the model it belongs to wherever the adapter says.
        raise ModelError(
            f"{folder} holds an adapter ({ADAPTER_CONFIG}), not a full model: merge it into its base"
        )
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} holds no model.safetensors{_instead(folder)}")
    for index in folder.glob("*.index.json"):
        for shard in _values(_read(index).get("weight_map")):
            if not str(shard).endswith(_WEIGHTS) or Path(str(shard)).name != shard:
                raise ModelError(
                    f"{index}: weight_map names {shard!r}, which is no safetensors file of this folder"
                )
    config = folder / "config.json"
    if config.is_file():
        for key, value in _entries(_read(config)):
            if key in _CODE_BY_NAME and any("/" in str(name) for name in _values(value)):
                raise ModelError(f"{config}: {key} is {value!r}, code from a hub, which is never fetched")


def check_adapter(folder: Path) -> None:
    """Refuse what is no LoRA adapter in safetensors.

    Raises:
        ModelError: naming the file.
    """
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise ModelError(f"{folder} holds an {ADAPTER_CONFIG} but no {ADAPTER_WEIGHTS}{_instead(folder)}")
    config = _read(folder / ADAPTER_CONFIG)
    if config.get("peft_type") != "LORA" or config.get("megatron_config"):
        raise ModelError(f"{folder / ADAPTER_CONFIG}: is no plain LoRA adapter, which is all that is read here")


def _instead(folder: Path) -> str:
    pickles = sorted(file.name for file in folder.glob("*") if file.suffix in _PICKLES)
    if not pickles:
        return ""
    return f"; {pickles[0]} is a pickle, which can run code and is not opened: convert it to safetensors"


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} holds no JSON object")
    return data


def _entries(data: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """All keys, also those of the parts of a composite model."""
    for key, value in data.items():
        yield key, value
        if isinstance(value, dict):
            yield from _entries(value)


def _values(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return [] if value is None else [value]
