"""Checkpoints that somebody has altered: torch's own files are pickles, and a seal is no signature."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from automixalign.storage import files
from automixalign.system.errors import TrainingError
from automixalign.training import averaging, checkpoints
from benchmarks.faults import _malice
from benchmarks.faults.case import Case, UnexpectedError

_GROUP = "security_checkpoints"
_STEPS = 2


def _trainer(folder: Path, *, lora: bool) -> Any:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig

    from automixalign.method.mixers import Standard
    from automixalign.models.load import load_full_model, load_tokenizer
    from automixalign.training.trainer import MixingTrainer

    base = _malice.sound_model()
    row = {"prompt_ids": [1, 5], "chosen_ids": [6, 2], "rejected_ids": [7, 2]}
    logps = {"ref_chosen_logps": -1.0, "ref_rejected_logps": -1.0}
    arguments = DPOConfig(
        output_dir=str(folder),
        max_steps=_STEPS,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        bf16=False,
        gradient_checkpointing=False,
        max_length=None,
        save_steps=1,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )
    return MixingTrainer(
        load_full_model(base),
        arguments,
        {"task": Dataset.from_list([{**row, **logps}] * 2)},
        Standard([2], 0),
        folder / checkpoints.TRAJECTORY,
        average_iterates=1.0,
        processing_class=load_tokenizer(base),
        peft_config=LoraConfig(r=1, target_modules=["q_proj"], task_type="CAUSAL_LM") if lora else None,
    )


@cache
def _halted(lora: bool) -> Path:
    """A training that has one checkpoint, as if it had been killed in its second step."""
    folder = _malice.scratch()
    _trainer(folder, lora=lora).train()
    shutil.rmtree(folder / f"checkpoint-{_STEPS}")
    return folder


def _resumed(folder: Path, alter: Callable[[Path, Path], None], *, lora: bool = False) -> str:
    """Resume from a checkpoint that was altered, past its seal: who may write there can write that, too."""
    marker, place = folder / "marker", folder / "training"
    checkpoint = place / "checkpoint-1"
    shutil.copytree(_halted(lora), place)
    alter(checkpoint, marker)
    trainer = _trainer(place, lora=lora)
    return _malice.refused(
        TrainingError, marker, lambda: trainer.train(str(checkpoint)), str(checkpoint), "remove it"
    )


def _pickled(name: str) -> Callable[[Path], str]:
    def alter(checkpoint: Path, marker: Path) -> None:
        if not (checkpoint / name).exists():
            raise UnexpectedError(f"a checkpoint has no {name}")
        _malice.write_pickle(checkpoint / name, marker)

    return lambda folder: _resumed(folder, alter)


def _weights(safe: str, pickle: str, *, lora: bool) -> Callable[[Path], str]:
    def alter(checkpoint: Path, marker: Path) -> None:
        (checkpoint / safe).unlink()
        _malice.write_pickle(checkpoint / pickle, marker)

    return lambda folder: _resumed(folder, alter, lora=lora)


def _unsealed(folder: Path) -> str:
    place, marker = folder / "training", folder / "marker"
    shutil.copytree(_halted(lora=False), place)
    _malice.write_pickle(place / "checkpoint-1" / "optimizer.pt", marker)
    trainer = _trainer(place, lora=False)
    _malice.harmless(marker, lambda: trainer.train(resume_from_checkpoint=True))
    steps = [row["step"] for row in files.read_jsonl(place / checkpoints.TRAJECTORY)]
    if steps != [1, 2]:
        raise UnexpectedError(f"its log has the steps {steps}")
    return "trained from the start"


_REFUSED = "TrainingError names the checkpoint; no code is run"
CASES = CHEAP = [
    Case(_GROUP, "optimizer.pt a malicious pickle, the seal as it was", "passed over by its digest", _unsealed),
    *(
        Case(_GROUP, f"{name} a malicious pickle, past the seal", _REFUSED, _pickled(name))
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", averaging.FILE)
    ),
    Case(
        _GROUP,
        "pytorch_model.bin in place of model.safetensors, past the seal",
        _REFUSED,
        _weights("model.safetensors", "pytorch_model.bin", lora=False),
    ),
    Case(
        _GROUP,
        "adapter_model.bin in place of adapter_model.safetensors, past the seal",
        _REFUSED,
        _weights("adapter_model.safetensors", "adapter_model.bin", lora=True),
    ),
]
