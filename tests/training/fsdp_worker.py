"""A worker in which accelerate takes FSDP on CPU: torch has it there, accelerate asks for an accelerator.

Threads write the checkpoints, as on a GPU. `start-RANK.json` gets what the start of the training took.

`python fsdp_worker.py FOLDER [STEP]`, a worker of `steps/jobs`; with a STEP the process dies after it.
"""

import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from transformers import PreTrainedModel

from automixalign.steps.jobs.job import rank
from automixalign.steps.jobs.worker import work
from automixalign.storage import files
from automixalign.system import heap
from automixalign.training import trainer
from automixalign.training.trainer import MixingTrainer


def _backend(*_: Any, **__: Any) -> tuple[str, DistributedType]:
    return "gloo", DistributedType.MULTI_GPU


def _set_device(state: PartialState) -> None:
    state.device = torch.device("cpu")


def _memory(key: str) -> int:
    """A line of /proc/self/status in bytes: `VmRSS` is the memory now, `VmHWM` its peak."""
    (kilobytes,) = re.findall(rf"^{key}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(kilobytes) * 1024


def _record_start(file: Path) -> None:
    """Record the bytes of each model that is read, and the peak of memory before the first step above now."""
    read: list[int] = []
    before: list[int] = []
    from_pretrained = PreTrainedModel.from_pretrained.__func__
    begin = trainer._AfterStep.on_train_begin

    def recorded(cls: type[PreTrainedModel], *args: Any, **kwargs: Any) -> PreTrainedModel:
        if not before:
            before.append(_memory("VmRSS"))
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        model: PreTrainedModel = from_pretrained(cls, *args, **kwargs)
        read.append(sum(p.numel() * p.element_size() for p in model.parameters() if not p.is_meta))
        return model

    def on_train_begin(callback: trainer._AfterStep, *args: Any, **kwargs: Any) -> None:
        begin(callback, *args, **kwargs)
        files.write_json(file, {"read": read, "peak": _memory("VmHWM") - before[0]})

    PreTrainedModel.from_pretrained = classmethod(recorded)
    trainer._AfterStep.on_train_begin = on_train_begin  # type: ignore[method-assign]


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
    heap.keep_freed_memory = bool  # so that the peak is of memory in use
    folder = Path(sys.argv[1])
    _record_start(folder / f"start-{rank()}.json")
    if len(sys.argv) > 2:
        _die_after(int(sys.argv[2]))
    work(folder)
