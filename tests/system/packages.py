"""Packages that are installed for one test."""

from pathlib import Path

import pytest


class Package:
    """An installed distribution, version 1.0, of one module `NAME_package`.

    Args:
        folder: where it is installed; `monkeypatch` makes it importable.
        name: of the distribution.
        code: of its module.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: str) -> None:
        monkeypatch.syspath_prepend(folder)
        self._module = f"{name}_package"
        self._metadata = folder / f"{name}-1.0.dist-info"
        self._metadata.mkdir()
        (folder / f"{self._module}.py").write_text(code)
        (self._metadata / "METADATA").write_text(f"Name: {name}\nVersion: 1.0\n")

    def declare(self, group: str, name: str, item: str) -> None:
        """Declare an item of the module as its only entry point."""
        text = f"[{group}]\n{name} = {self._module}:{item}\n"
        (self._metadata / "entry_points.txt").write_text(text)
