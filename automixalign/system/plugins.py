"""Registries by name, which other packages extend.

Another package adds to a registry in one of two ways. Either it is installed and declares an entry point of the
registry's group, or a configuration names its module under `plugins`, and the module registers when it is
imported.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from types import MappingProxyType
from typing import Any, Generic, Literal, TypeVar

from automixalign.system.errors import ConfigError

_T = TypeVar("_T")
_Item = TypeVar("_Item")
Kind = Literal["mixer", "merge", "verifier", "row format", "metric"]
GROUPS: Mapping[Kind, str] = {
    "mixer": "automixalign.mixers",
    "merge": "automixalign.merges",
    "verifier": "automixalign.verifiers",
    "row format": "automixalign.row_formats",
    "metric": "automixalign.metrics",
}
"""The group of entry points of each registry."""
_OWN = __name__.partition(".")[0]
_modules: dict[tuple[Kind, str], str] = {}
"""Kind and name of each registered item -> the module that defines it."""


class Plugins(Generic[_T]):
    """Functions, classes or descriptions of one kind, by name.

    Args:
        kind: what messages call one of them; it also names the group of entry points.
        packages: the packages whose modules register those of this project.
        base: the class whose subclasses they are; by default they may be anything.
    """

    def __init__(self, kind: Kind, *packages: str, base: type | None = None) -> None:
        self._kind, self._packages, self._base = kind, packages, base
        self._items: dict[str, _T] = {}

    def register(self, name: str) -> Callable[[_Item], _Item]:
        """Make an item known by a name, as a decorator.

        A description, which is neither a class nor a function, names the module of its definition in `module`.

        Raises:
            ValueError: another one has the name.
            TypeError: it is no subclass of the base.
        """

        def add(item: Any) -> Any:
            is_subclass = isinstance(item, type) and (self._base is None or issubclass(item, self._base))
            if self._base is not None and not is_subclass:
                raise TypeError(f"it is no subclass of {self._base.__name__}; docs/extending.md shows one")
            is_definition = isinstance(item, type) or inspect.isroutine(item)
            module = item.__module__ if is_definition else item.module
            other: Any = self._items.get(name, item)
            origin = _modules.setdefault((self._kind, name), module)
            if (origin, _qualname(other)) != (module, _qualname(item)):
                raise ValueError(f"the {self._kind} {name!r} is defined twice: in {origin} and {module}")
            self._items[name] = item
            return item

        return add

    def load(self) -> Mapping[str, _T]:
        """All of them by name: those of the project, of imported modules, and of other installed packages.

        Raises:
            ConfigError: an installed package declares one that cannot be loaded, or a name that is in use.
        """
        for package in self._packages:
            for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
                importlib.import_module(f"{package}.{module.name}")
        # A module that a configuration names may have registered before.
        for name in [name for name in self._items if not self._is_own(name)]:
            self._items[name] = self._items.pop(name)
        for entry_point in metadata.entry_points(group=GROUPS[self._kind]):
            try:
                self.register(entry_point.name)(entry_point.load())
            except Exception as error:  # the package's own code runs here
                raise ConfigError(
                    f"the {self._kind} {entry_point.name!r} cannot be loaded from {entry_point.value}: "
                    f"{error}; repair or uninstall its package"
                ) from error
        return MappingProxyType(self._items)  # later registrations appear in it

    def _is_own(self, name: str) -> bool:
        return _modules[self._kind, name].partition(".")[0] == _OWN


def _qualname(item: object) -> str:
    return getattr(item, "__qualname__", "")


def outside_modules(kind: Kind, names: Iterable[str] | None = None) -> list[str]:
    """The modules outside this project that define items of a kind.

    Args:
        kind: of the items.
        names: of the items; by default all.

    Returns:
        The modules, sorted, without those of names that are not registered.
    """
    modules = {name: module for (of_kind, name), module in _modules.items() if of_kind == kind}
    # A registry loads its entry points when it is first asked; their modules are known before.
    modules |= {each.name: each.module for each in metadata.entry_points(group=GROUPS[kind])}
    wanted = modules.keys() if names is None else modules.keys() & set(names)
    return sorted({modules[name] for name in wanted if modules[name].partition(".")[0] != _OWN})
