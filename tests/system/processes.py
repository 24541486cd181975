"""Python code in processes of their own."""

import os
import subprocess
import sys
from typing import Any


def run(
    code: str, *arguments: object, check: bool = True, env: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run Python code to its end."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=check, env=env, capture_output=True, text=True)


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
