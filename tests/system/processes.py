"""Processes for tests that kill them."""

import os
import subprocess
import sys
from typing import Any


def start(code: str, *arguments: object, **environment: str) -> "subprocess.Popen[str]":
    """Run Python code in a process group of its own, and wait until it prints `ready`."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    output: Any = process.stdout
    assert output.readline() == "ready\n"
    return process
