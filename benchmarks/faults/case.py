"""What a case of the fault bench is, and what cases are made of."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class UnexpectedError(Exception):
    """The fault did not end as it should have; the message is what was seen."""


class Case(NamedTuple):
    """One fault."""

    group: str
    """`rows`, `configs`, `outages`, ...: the module that holds it."""
    name: str
    expected: str
    """What must come of it, in a few words."""
    run: Callable[[Path], str]
    """Bring the fault about in a new folder, and say in a few words what was seen.

    Raises:
        UnexpectedError: it was not what is expected.
    """


def ama(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line in a process of its own, with these further environment variables."""
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", *map(str, arguments)]
    environ = {**os.environ, "COLUMNS": "100", **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
