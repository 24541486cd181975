"""Weights on disk: written one tensor at a time, and looked at for what is not finite."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import safe_open

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
}
_ENTRY = 200
"""Bytes that a tensor's entry in the header takes at most, without its name."""
_ALIGNMENT = 64
"""Of the first tensor in the file; safetensors asks for 8."""


def not_finite(folder: Path) -> str | None:
    """The first weight of a model or adapter with a value that is not finite; None if there is none."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  it is no mapping
                if not is_finite(tensors.get_tensor(name)):
                    return str(name)
    return None


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all values are finite, without an intermediate tensor: both ends are NaN where one value is."""
    return not tensor.numel() or all(math.isfinite(end) for end in torch.aminmax(tensor))


class Writer:
    """A safetensors file that tensors are written to as they come, so that none has to be kept.

    The file begins with a list of what is in it, room for which is left at first; the format allows blanks
    after the list (https://github.com/huggingface/safetensors#format).

    Args:
        file: written in place; whole once the context ends.
        names: at least those of the tensors that will come.
    """

    def __init__(self, file: Path, names: Iterable[str]) -> None:
        self.header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        room = _ENTRY + sum(len(json.dumps(name)) + _ENTRY for name in names)
        self.start = math.ceil((8 + room) / _ALIGNMENT) * _ALIGNMENT
        self.stream = file.open("wb")
        self.stream.seek(self.start)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor."""
        begin = self.stream.tell() - self.start
        content = tensor.detach().cpu().contiguous()
        self.stream.write(content.reshape(-1).view(torch.uint8).numpy().data)
        self.header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, begin + content.nbytes],
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.stream:
            if kind is None:
                length = self.start - 8
                self.stream.seek(0)
                self.stream.write(length.to_bytes(8, "little"))
                self.stream.write(json.dumps(self.header, separators=(",", ":")).encode().ljust(length))
