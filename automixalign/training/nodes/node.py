"""One node of a training that Kubeflow Trainer runs.

    python -m automixalign.training.nodes.node s3://.../trainings/ID

It downloads the training (`handover`) and starts a worker for each process by torchrun. Trainer's runtime
passes the number of nodes, the rank of this one and the address of the first in `PET_*` variables. The first
node uploads the model, finishes the training, and uploads the rest. If that failed in an earlier attempt, the
model is not trained again. A node that fails uploads its error for the waiting stage.
"""

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from automixalign.steps.jobs import worker
from automixalign.steps.jobs.job import error_of, result_file
from automixalign.storage import files
from automixalign.system.errors import AutoMixAlignError
from automixalign.system.processors import respect_container_limit
from automixalign.training.nodes.handover import Exchange

_JOIN_SECONDS = 1800
"""Nodes wait at most this long for each other: some pull an image of gigabytes first."""


def run(uri: str) -> None:
    """Take part in a training as the node that the environment names."""
    from torch.distributed.elastic.multiprocessing.api import SignalException

    respect_container_limit()
    exchange, node = Exchange(uri), os.environ.get("PET_NODE_RANK", "0")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        try:
            training = exchange.receive(folder)
            if not exchange.is_trained():
                _start_workers(folder, training.settings.training.processes)
                if node == "0":
                    exchange.upload_trained(folder)
            elif node == "0":
                files.write_json(folder / result_file(0), exchange.download_trained(training))
            if node == "0":
                _forget_nodes()
                training.finish()
                exchange.upload_result(folder)
        except SignalException:
            raise  # the node was ended from outside
        except Exception as failure:
            error = failure if isinstance(failure, AutoMixAlignError) else error_of(folder, failure)
            exchange.report_error(error, node, _failure_time(folder))
            raise


def _start_workers(folder: Path, processes: int) -> None:
    import torch
    from accelerate.utils import patch_environment
    from torch.distributed.run import main

    threads = max(1, torch.get_num_threads() // processes)
    with patch_environment(OMP_NUM_THREADS=str(threads)):
        main(["--rdzv-conf", f"timeout={_JOIN_SECONDS}", "--module", worker.__name__, str(folder)])


def _forget_nodes() -> None:
    """Remove what Trainer's runtime says of the nodes: a launcher of this node's processes would read it."""
    for name in [name for name in os.environ if name.startswith("PET_")]:
        del os.environ[name]


def _failure_time(folder: Path) -> int:
    """When the first worker failed, in nanoseconds; now, if no worker reported an error."""
    return min((file.stat().st_mtime_ns for file in folder.glob("error-*.json")), default=time.time_ns())


if __name__ == "__main__":
    # The first process of a container ignores every signal that it has no handler for.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    run(sys.argv[1])
