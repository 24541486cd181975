"""Processes that end with the one that stands behind them, however that one ended.

It holds a lock on a file, which the system releases with it; whoever depends on it waits for that lock.
"""

import fcntl
import os
import signal
import threading
from pathlib import Path
from typing import TextIO

FILE = "AMA_ALIVE"
"""The environment variable that names the file to the processes of a local run."""


def hold(file: Path) -> TextIO:
    """Be the one that others depend on, for as long as the returned file is open."""
    lock = file.open("w", encoding="utf-8")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def depend() -> None:
    """End this process and its whole group at the moment when the holder of `AMA_ALIVE` has ended."""
    if name := os.environ.get(FILE):
        threading.Thread(target=_wait_and_end, args=(Path(name),), daemon=True).start()


def _wait_and_end(file: Path) -> None:
    with file.open(encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        os.killpg(0, signal.SIGKILL)
        os._exit(128 + signal.SIGKILL)  # the first process of a container cannot be killed from within
