"""The process that goes through the DAG, started before it is known whether there is one to go through.

What it imports takes as long as looking at the configuration and its sources does, and what its steps import
takes longer still.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

_ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # The training libraries report their use to their makers unless told not to.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""What the process and all that it starts see from their beginning."""
_PATIENCE = 5


class Ahead:
    """The process, from its start to the end of all that it started.

    Args:
        warmly: there will be steps to run: what they share is imported from now on, too.
    """

    environment = _ENVIRONMENT

    def __init__(self, warmly: bool = True) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  what comes before there is a log
        self._ended = False
        self._asked, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "pipelines.local",
                    str(theirs.fileno()),
                    *(["warmly"] if warmly else []),
                ],
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=subprocess.STDOUT,
                env={**os.environ, **_ENVIRONMENT},
                start_new_session=True,  # so that the whole family of processes can be ended together
                pass_fds=[theirs.fileno()],
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def begin(self, attempt: Path, lock: TextIO) -> None:
        """Have it go through an attempt.

        Args:
            attempt: file with an `Attempt` as JSON.
            lock: the run folder is in use for as long as it is open, there or here.
        """
        with suppress(BrokenPipeError, ConnectionResetError):  # it has ended already; its status tells
            socket.send_fds(self._asked, [os.fsencode(attempt)], [lock.fileno()])

    def runs(self, seconds: float) -> bool:
        """Whether it still runs after so many seconds."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def end(self) -> int:
        """End what is left of it, and of the processes it started; return its exit status."""
        if self._ended:
            return int(self._process.returncode)
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_PATIENCE)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._ended = True
        self._asked.close()
        return self._process.wait()

    def said(self) -> bytes:
        """What it printed before it was told of a log, of its fork server's output all."""
        self._said.seek(0)
        return self._said.read()
