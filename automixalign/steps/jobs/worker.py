"""One process of a job: `python -m automixalign.steps.jobs.worker FOLDER`, started by a launcher.

The launcher (`accelerate launch`, torchrun) passes the process's rank and the address of the others in the
environment. The folder holds `job.json`. Each process writes `result-RANK.json` there; one that fails writes
`error-RANK.json`.
"""

import os
import signal
import socket
import sys
from datetime import timedelta
from pathlib import Path

from automixalign.steps.jobs.job import JOB, PackedJob, rank, result_file
from automixalign.steps.step import adopt_step
from automixalign.storage import files
from automixalign.system import shortages

_TIMEOUT = timedelta(hours=2)
"""Processes wait at most this long for each other: the first one may download and check a large checkpoint."""


def work(folder: Path) -> None:
    """Do this process's share of the folder's job."""
    import torch

    job = PackedJob.model_validate_json((folder / JOB).read_text(encoding="utf-8"))
    adopt_step(job.stage, job.name)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    elif os.environ["WORLD_SIZE"] == os.environ["LOCAL_WORLD_SIZE"]:
        # All processes are on this machine, so gloo listens on the loopback address only.
        loopback = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback[0])
    torch.distributed.init_process_group("nccl" if cuda else "gloo", timeout=_TIMEOUT)
    try:
        with shortages.name_shortages(f"process {rank()}", job.stage):
            result = job.load().run(folder)
    except BaseException as error:
        files.write_json(folder / f"error-{rank()}.json", [type(error).__name__, str(error)])
        raise
    files.write_json(folder / result_file(rank()), result)
    torch.distributed.destroy_process_group()


def _end_with_the_launcher() -> None:
    """Have the system kill this process when its launcher ends; it would wait for the others for ever."""
    from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]

    launcher = os.getppid()
    _prctl_pr_set_pdeathsig(signal.SIGKILL)
    if os.getppid() != launcher:
        sys.exit("the launcher has ended")


if __name__ == "__main__":
    _end_with_the_launcher()
    work(Path(sys.argv[1]))
