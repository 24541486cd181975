"""Write safetensors files one tensor at a time, and find weights that are not finite."""

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
_MAX_ENTRY_BYTES = 200
"""The longest entry of a tensor in the header, without the tensor's name."""
_ALIGNMENT_BYTES = 64
"""Alignment of the first tensor in the file; safetensors requires 8."""


def first_nonfinite_weight(folder: Path) -> str | None:
    """Name the first weight of a model or adapter with a value that is not finite; None if all are finite."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  not a mapping
                if not is_finite(tensors.get_tensor(name)):
                    return str(name)
    return None


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all values are finite; needs no second tensor, because minimum and maximum pass on a NaN."""
    return not tensor.numel() or all(math.isfinite(extreme) for extreme in torch.aminmax(tensor))


class SafetensorsWriter:
    """Write a safetensors file one tensor at a time, so that memory holds only one.

    The file begins with a header that lists its tensors. The writer reserves space for it and writes it last;
    the format allows spaces after it (https://github.com/huggingface/safetensors#format).

    Args:
        file: the file; complete when the context ends.
        names: the tensors to come; further names only cost space.
    """

    def __init__(self, file: Path, names: Iterable[str]) -> None:
        self.header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        header_bytes = _MAX_ENTRY_BYTES + sum(len(json.dumps(name)) + _MAX_ENTRY_BYTES for name in names)
        self.start = math.ceil((8 + header_bytes) / _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
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
