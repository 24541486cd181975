"""What happens to the record of a stage that has ended."""

import os
import time
from typing import Literal

from automixalign.steps.tracking import spool
from automixalign.steps.tracking.record import Record

_SENDING_SECONDS = 60


def deliver(record: Record, status: Literal["FINISHED", "FAILED"]) -> str | None:
    """Put a record in the spool, if this process has one, and send it unless another process sends for all.

    Returns:
        A warning if MLflow did not take the record, which then waits in the spool.
    """
    spool_of_process = spool.of_environment()
    if spool_of_process is None:
        return None
    record.ended, record.status = time.time(), status
    spool_of_process.add(record)
    if spool.FOLLOWED in os.environ:
        return None
    from automixalign.steps.tracking.send import send_waiting

    reason = send_waiting(spool_of_process, _SENDING_SECONDS)
    if reason is None:
        return None
    return f"MLflow did not take the stage's record ({reason}); it waits in {spool_of_process.folder}"
