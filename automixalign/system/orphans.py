"""No orphan processes: the processes of a run end when the process that started the run ends, even by SIGKILL.

The starting process holds a lock on a file. The system releases the lock when the process ends. The other
processes wait for it.
"""

import fcntl
import os
import signal
import threading
from pathlib import Path
from typing import TextIO

LOCK_VARIABLE = "AMA_ALIVE"
"""The environment variable that names the file to the processes of a local run."""


def hold_lock(path: Path) -> TextIO:
    """Lock a file; the other processes run for as long as the returned file is open."""
    lock = path.open("w", encoding="utf-8")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def end_with_lock_holder() -> None:
    """Kill this process and its group as soon as the process that holds the lock of `AMA_ALIVE` has ended."""
    if path := os.environ.get(LOCK_VARIABLE):
        threading.Thread(target=_wait_and_end, args=(Path(path),), daemon=True).start()


def _wait_and_end(path: Path) -> None:
    with path.open(encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        os.killpg(0, signal.SIGKILL)
        os._exit(128 + signal.SIGKILL)  # SIGKILL does not end the first process of a container
