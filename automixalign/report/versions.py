"""Which software made a run."""

import platform
from importlib import metadata

from automixalign import __version__

_PACKAGES = ("torch", "transformers", "trl", "peft", "mergekit", "kfp")


def versions() -> dict[str, str]:
    """Python, this library and the installed ones among the packages that a result depends on."""
    found = {"python": platform.python_version(), "automixalign": __version__}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
