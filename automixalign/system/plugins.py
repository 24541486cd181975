"""Registries by name, which other packages extend through entry points."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from importlib import metadata
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from automixalign.system.errors import ConfigError

_T = TypeVar("_T")
_Item = TypeVar("_Item")


class Plugins(Generic[_T]):
    """Functions or classes of one kind, by name.

    Args:
        kind: what messages call one of them.
        package: the package whose modules register those of this project.
        entry_points: the group of entry points by which other packages declare theirs.
        base: the class whose subclasses they are; by default they may be anything.
    """

    def __init__(self, kind: str, package: str, entry_points: str, base: type | None = None) -> None:
        self._kind, self._package, self._entry_points, self._base = kind, package, entry_points, base
        self._items: dict[str, _T] = {}

    def register(self, name: str) -> Callable[[_Item], _Item]:
        """Make a function or class known by a name, as a decorator.

        Raises:
            ValueError: another one has the name.
        """

        def add(item: Any) -> Any:
            other: Any = self._items.setdefault(name, item)
            if (other.__module__, other.__qualname__) != (item.__module__, item.__qualname__):
                raise ValueError(
                    f"the {self._kind} {name!r} is defined twice: in {other.__module__} and {item.__module__}"
                )
            return item

        return add

    def load(self) -> Mapping[str, _T]:
        """All of them by name: those of the package, then those of other installed packages.

        Raises:
            ConfigError: an installed package declares one that cannot be loaded, or a name that is in use.
        """
        for module in pkgutil.iter_modules(importlib.import_module(self._package).__path__):
            importlib.import_module(f"{self._package}.{module.name}")
        for entry_point in metadata.entry_points(group=self._entry_points):
            try:
                self.register(entry_point.name)(self._checked(entry_point.load()))
            except Exception as error:  # the package's own code runs here
                raise ConfigError(
                    f"the {self._kind} {entry_point.name!r} cannot be loaded from {entry_point.value}: "
                    f"{error}; repair or uninstall its package"
                ) from error
        return MappingProxyType(self._items)

    def _checked(self, item: Any) -> Any:
        if self._base is not None and not (isinstance(item, type) and issubclass(item, self._base)):
            raise TypeError(f"it is no subclass of {self._base.__name__}")
        return item
