"""A node of a training that Kubeflow Trainer runs: `python -m automixalign.training.nodes.node s3://.../trainings/ID`.

It fetches what is to be trained (see `handover`), starts a worker a process by torchrun, to which Trainer's
runtime says in `PET_*` variables how many nodes there are, which this one is and where the first is, and gives
back what the first worker has made. Where it fails, it tells the step that waits.
"""

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from automixalign.system.errors import AutoMixAlignError
from automixalign.training.job import error_of
from automixalign.training.nodes.handover import Exchange

_JOIN_SECONDS = 1800
"""So long the nodes wait for each other; some fetch an image of gigabytes first."""


def run(uri: str) -> None:
    """Take part in a training as the node that the environment names."""
    from torch.distributed.elastic.multiprocessing.api import SignalException

    exchange, node = Exchange(uri), os.environ.get("PET_NODE_RANK", "0")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        try:
            training = exchange.receive(folder)
            _start_workers(folder, training.settings.training.processes)
            if node == "0":
                exchange.give_back(folder)
        except SignalException:
            raise  # whoever ended this node knows why
        except Exception as failure:
            error = failure if isinstance(failure, AutoMixAlignError) else error_of(folder, failure)
            exchange.tell(error, node, _failed_at(folder))
            raise


def _start_workers(folder: Path, processes: int) -> None:
    import torch
    from torch.distributed.run import main

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // processes)))
    main(["--rdzv-conf", f"timeout={_JOIN_SECONDS}", "--module", "automixalign.training.worker", str(folder)])


def _failed_at(folder: Path) -> int:
    """When the first worker failed, in nanoseconds; now, where none did."""
    return min((file.stat().st_mtime_ns for file in folder.glob("error-*.json")), default=time.time_ns())


if __name__ == "__main__":
    # The first process of a container is not ended by a signal that it does not handle.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    run(sys.argv[1])
