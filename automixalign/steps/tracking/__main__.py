"""Send the records of a spool until it is closed: `python -m automixalign.steps.tracking FOLDER`."""

import os
import sys
import time
from pathlib import Path

from automixalign.steps.tracking.send import send_waiting
from automixalign.steps.tracking.spool import Spool

_POLL_SECONDS = 0.1
_NICENESS = 10
"""The stages need the processors more."""


def send_until_closed(spool: Spool) -> str | None:
    """Send until the spool is closed or the parent process has ended.

    Returns:
        None when all records are sent, else why the first remaining one was not.
    """
    os.nice(_NICENESS)
    parent = os.getppid()
    while True:
        last = spool.closed() is not None or os.getppid() != parent
        reason = send_waiting(spool)
        if last:
            return reason
        time.sleep(_POLL_SECONDS)


if __name__ == "__main__":
    sys.exit(send_until_closed(Spool(Path(sys.argv[1]))))
