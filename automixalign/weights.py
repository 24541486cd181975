"""Whether written weights are numbers: what is not finite would spoil all that is measured later."""

from pathlib import Path

import torch
from safetensors import safe_open


def not_finite(folder: Path) -> str | None:
    """The first weight of a model or adapter with a value that is not finite; None if there is none."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  it is no mapping
                if not torch.isfinite(tensors.get_tensor(name)).all():
                    return str(name)
    return None
