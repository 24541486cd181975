"""Send a spool's records as they come, until it is closed: `python -m automixalign.steps.tracking FOLDER`."""

import os
import sys
import time
from pathlib import Path

from automixalign.steps.tracking.send import send_waiting
from automixalign.steps.tracking.spool import Spool

_POLL = 0.1
_NICE = 10
"""The steps come first."""


def follow(spool: Spool) -> str | None:
    """Send until the spool is closed, or the process that started this one is gone.

    Returns:
        None when all was sent, else why the first one that is left was not.
    """
    os.nice(_NICE)
    started_by = os.getppid()
    while True:
        last = spool.closed() is not None or os.getppid() != started_by
        left = send_waiting(spool)
        if last:
            return left
        time.sleep(_POLL)


if __name__ == "__main__":
    sys.exit(follow(Spool(Path(sys.argv[1]))))
