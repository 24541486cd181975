"""The process that runs the DAG, as seen by the process that started it."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TextIO

_END_SECONDS = 5


class DagProcess:
    """Runs the DAG of an attempt, from the start of the process until `end`.

    Args:
        attempt: file with an `Attempt` as JSON.
        environment: added to the environment of this process.
        log: file that gets the output of all processes, unless a stage has a log of its own.
        lock: the lock of the run folder. The process holds it too, until it ends.
    """

    def __init__(self, attempt: Path, environment: Mapping[str, str], log: Path, lock: TextIO) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.local", str(attempt)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,  # one signal then ends the whole process group
                pass_fds=[lock.fileno()],
            )
        self._group_is_ended = False

    def is_running(self, wait_seconds: float) -> bool:
        """Wait at most this long for the end of the process; return whether it still runs."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(wait_seconds)
        return self._process.returncode is None

    def end(self) -> int:
        """End the process and all processes that it started; return its exit status."""
        if not self._group_is_ended:
            self._group_is_ended = True
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGTERM)
                self.is_running(_END_SECONDS)
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait()
