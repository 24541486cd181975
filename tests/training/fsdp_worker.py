"""A worker in which accelerate takes FSDP on CPU: torch has it there, accelerate asks for an accelerator.

Threads write the checkpoints, as on a GPU.

`python fsdp_worker.py FOLDER [STEP]`, a worker of `steps/jobs`; with a STEP the process dies after it.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType

from automixalign.steps.jobs.worker import work
from automixalign.training.trainer import MixingTrainer


def _backend(*_: Any, **__: Any) -> tuple[str, DistributedType]:
    return "gloo", DistributedType.MULTI_GPU


def _set_device(state: PartialState) -> None:
    state.device = torch.device("cpu")


def _die_after(last: int) -> None:
    finish = MixingTrainer.finish_step

    def finish_step(trainer: MixingTrainer) -> None:
        finish(trainer)
        if trainer.state.global_step == last:
            trainer.checkpoints.wait()
            trainer.accelerator.wait_for_everyone()
            os.kill(os.getpid(), signal.SIGKILL)

    MixingTrainer.finish_step = finish_step  # type: ignore[method-assign]


if __name__ == "__main__":
    PartialState._prepare_backend = _backend
    PartialState.set_device = _set_device
    MixingTrainer.saves_in_background = True  # type: ignore[assignment, method-assign]
    if len(sys.argv) > 2:
        _die_after(int(sys.argv[2]))
    work(Path(sys.argv[1]))
