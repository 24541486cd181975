"""The software that makes a run."""

import platform
from importlib import metadata

from automixalign import __version__

_PACKAGES = ("torch", "transformers", "trl", "peft", "mergekit", "kfp")


def versions() -> dict[str, str]:
    """The versions of Python, of this library, and of the packages that a result depends on."""
    installed = {"python": platform.python_version(), "automixalign": __version__}
    for package in _PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed
