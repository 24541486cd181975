"""Modules of the user that register mixers, merges, verifiers, row formats or metrics when they are imported.

A configuration names them (`plugins: [my_package.mixers]`). Checking settings with their names imports them. So
every process of a run that needs them imports them: runner, workers, nodes and pods. There they must be
installed, or in a folder of PYTHONPATH.
"""

import importlib
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


Plugin = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$"), AfterValidator(_import_module)
]
"""The name of an importable module; checking it imports the module."""
