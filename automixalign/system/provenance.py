"""What determines a result besides a step's inputs and settings: code, versions, environment.

All of it is part of every step's settings, so that another of them never meets a cached result.
"""

import hashlib
import json
import os
import platform
import re
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

_CODE = (".py", ".html", ".css", ".js")
_NUMERIC = (
    *("ATEN_", "CUBLAS_", "CUDA_", "DNNL_", "KMP_", "MKL_", "NVIDIA_TF32_OVERRIDE"),
    *("OMP_", "ONEDNN_", "OPENBLAS_", "PYTORCH_", "TORCH_"),
)
"""How the environment variables begin that change how numbers are computed."""
_CONTENT = ("HF_ENDPOINT",)
"""Variables that say what stands behind a name."""
_NAME = re.compile(r"[A-Za-z0-9._-]+")


@cache
def library_digest() -> str:
    """SHA-256 of this library's source."""
    total = hashlib.sha256()
    root = Path(__file__).parents[1]
    for file in sorted(file for file in root.rglob("*") if file.suffix in _CODE):
        total.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return total.hexdigest()[:16]


@cache
def versions() -> dict[str, str]:
    """The versions of Python, of what this project requires and of installed packages with verifiers."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for requirement in metadata.requires("automixalign") or []:
        name = _NAME.match(requirement)
        if name and "extra ==" not in requirement:
            found[name[0]] = metadata.version(name[0])
    for entry_point in metadata.entry_points(group="automixalign.verifiers"):
        if entry_point.dist is not None:
            found[entry_point.dist.name] = entry_point.dist.version
    return found


def environment_digest(environ: Mapping[str, str] = os.environ) -> str:
    """SHA-256 of the versions and of the environment variables that can change a result.

    A local run sets `OMP_NUM_THREADS` by the processors there are, so these count, too.
    """
    relevant = {name: value for name, value in environ.items() if name.startswith((*_NUMERIC, *_CONTENT))}
    text = json.dumps([versions(), relevant], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
