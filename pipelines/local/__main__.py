"""The process that goes through the DAG of a local run; `ahead.py` starts it and tells it what to do."""

import gc
import logging
import os
import socket
import sys
from pathlib import Path

from pipelines.local import warm


def main(descriptor: int, warmly: bool) -> None:
    """Import what will be needed, and wait for the attempt to go through.

    Args:
        descriptor: of the socket where the attempt's file is named.
        warmly: there will be steps to run, so that the imports that all of them share can begin.
    """
    if warmly:
        warm.begin()
    gc.disable()  # imports make objects that stay
    from automixalign.system import orphans
    from pipelines.local.attempt import Attempt
    from pipelines.local.runner import go_through

    gc.freeze()
    gc.enable()
    with socket.socket(fileno=descriptor) as asked:
        # With it comes the run folder's lock, which from now on this process holds, too.
        file, _, _, _ = socket.recv_fds(asked, 4096, 1)
    if not file:
        return  # whoever started this process has gone, or did not need it
    attempt = Attempt.model_validate_json(Path(os.fsdecode(file)).read_text(encoding="utf-8"))
    os.environ.update(attempt.environment)
    if attempt.log is not None:
        warm.print_to(attempt.log)
    logging.captureWarnings(True)
    orphans.end_with_lock_holder()
    go_through(attempt, fresh=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), warmly=sys.argv[2:] == ["warmly"])
