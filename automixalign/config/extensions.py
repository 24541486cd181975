"""Modules of the user that register mixers when they are imported.

A configuration names them (`extensions: [my_package.mixers]`). Checking settings with their names imports them.
So every process of a run imports them: runner, workers, nodes and pods. There they must be installed, or in a
folder of PYTHONPATH.
"""

import hashlib
import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, StringConstraints


def _import_module(name: str) -> str:
    try:
        importlib.import_module(name)
    except Exception as error:
        raise ValueError(
            f"the module {name} cannot be imported: {type(error).__name__}: {error}; "
            "install it, or add its folder to PYTHONPATH"
        ) from error
    return name


Extension = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$"), AfterValidator(_import_module)
]
"""The name of an importable module; checking it imports the module."""


def extensions_digest(names: Iterable[str]) -> str:
    """SHA-256 of the modules' source files; "" without modules."""
    total = hashlib.sha256()
    paths = [importlib.import_module(name).__file__ for name in names]
    for path in paths:
        total.update(Path(path).read_bytes() if path else b"")
    return total.hexdigest()[:16] if paths else ""
