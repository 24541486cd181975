"""The registry of verifiers.

To add a verifier to this project, write a module in this package and decorate a function with
`register("name")`. Another package adds its own through an entry point:

    [project.entry-points."automixalign.verifiers"]
    polite = "my_package.verifiers:is_polite"
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from automixalign.system.errors import ConfigError

Verifier: TypeAlias = Callable[[str, str], bool]
"""Takes the generated and the right answer; returns whether the generated one passes."""

ENTRY_POINTS = "automixalign.verifiers"
_REGISTRY: dict[str, Verifier] = {}


def register(name: str) -> Callable[[Verifier], Verifier]:
    """Make a function known as the verifier `name`, as a decorator.

    Raises:
        ValueError: another function has the name.
    """

    def add(verifier: Verifier) -> Verifier:
        other = _REGISTRY.setdefault(name, verifier)
        if (other.__module__, other.__qualname__) != (verifier.__module__, verifier.__qualname__):
            raise ValueError(
                f"the verifier {name!r} is defined twice: in {other.__module__} and {verifier.__module__}"
            )
        return verifier

    return add


@cache
def registered_verifiers() -> Mapping[str, Verifier]:
    """Every verifier by its name: those of this package, then those of installed packages.

    Raises:
        ConfigError: an installed package declares a verifier that cannot be loaded, or a name that is in use.
    """
    for module in pkgutil.iter_modules([str(Path(__file__).parent)], f"{__package__}."):
        importlib.import_module(module.name)
    for entry_point in metadata.entry_points(group=ENTRY_POINTS):
        try:
            register(entry_point.name)(entry_point.load())
        except Exception as error:  # the package's own code runs here
            raise ConfigError(
                f"the verifier {entry_point.name!r} cannot be loaded from {entry_point.value}: {error}; "
                "repair or uninstall its package"
            ) from error
    return MappingProxyType(_REGISTRY)
