"""What the library tells its user while it works: the logger `automixalign`, printed to stderr."""

import logging
import sys

from automixalign.system.plain_text import printable

logger = logging.getLogger("automixalign")


class _Printer(logging.Handler):
    """Prints to the current `sys.stderr`, which tests and the log of a stage replace.

    Unlike logging's own handler it raises the error of a failed write, so that a full disk is not ignored.
    """

    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        sys.stderr.write(printable(f"{prefix}{self.format(record)}\n"))


def print_messages() -> None:
    """Print the library's messages to stderr, each once; `run_step`, a worker and `ama` call this first."""
    if not any(isinstance(handler, _Printer) for handler in logger.handlers):
        logger.addHandler(_Printer())
    logger.setLevel(logging.INFO)
    logger.propagate = False  # kfp's executor prints what reaches the root logger
