"""The generated answer is mathematically equal to the right one."""

import atexit
import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar

from automixalign.scoring.verifiers.registry import register
from automixalign.scoring.verifiers.verifier import Generated, Undecided, Verifier

_WORKER = Path(__file__).with_name("math_worker.py")
_SECONDS = 5
"""Of computing time for one comparison; how busy the machine is does not change the result."""


@register("math")
class Math(Verifier):
    """Both answers are mathematically equal, as LaTeX or plain text: `1/2`, `$\\\\frac{1}{2}$` and `0.5`."""

    needs_answer: ClassVar[bool] = True

    def passes(self, generated: Generated) -> bool:
        """Compare with math-verify (https://github.com/huggingface/Math-Verify)."""
        return _are_equal(generated.answer, generated.output)


@lru_cache(1 << 16)
def _are_equal(answer: str, output: str) -> bool:
    return _process.ask(answer, output)


class _Process:
    """The process that compares answers: a hard problem can neither block this process nor take its memory."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = Lock()

    def ask(self, answer: str, output: str) -> bool:
        """Whether the answers are equal.

        Raises:
            Undecided: the process ended, by its limit of time or memory.
        """
        with self._lock:
            process = self._process = self._process or self._start()
            try:
                process.stdin.write(json.dumps([answer, output]) + "\n")  # type: ignore[union-attr]
                process.stdin.flush()  # type: ignore[union-attr]
                reply = process.stdout.readline()  # type: ignore[union-attr]
            except BrokenPipeError:
                reply = ""
            if not reply:
                self.end()
                raise Undecided("math-verify needs too much time or memory")
        return bool(json.loads(reply))

    def end(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> "subprocess.Popen[str]":
        options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        # -P: the modules beside the worker must not hide others of their names.
        command = [sys.executable, "-P", str(_WORKER), str(_SECONDS)]
        return subprocess.Popen(command, encoding="utf-8", **options)


_process = _Process()
atexit.register(_process.end)
