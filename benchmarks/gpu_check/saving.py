"""Checkpoints: how long they stop a training, their size, and whether a resumed training is the same."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import TrainerCallback

from automixalign.training.checkpoints.schedule import Schedule
from benchmarks.gpu_check.setting import Row, Setting, free_memory, now
from benchmarks.gpu_check.trainings import Clock, train, trainer_of

_PRESET = Path(__file__).parents[2] / "pipelines" / "presets" / "zephyr-7b.yaml"
"""Names the minutes between two checkpoints."""
_EVERY = 2
"""Steps between two checkpoints of a resumed training."""


def checkpoints(setting: Setting) -> Iterator[Row]:
    """How long a checkpoint stops the training, its size, and its share of the time at a preset's interval."""
    rows = setting.rows(setting.warmup + setting.steps)
    clock = train(setting, setting.model(), rows, "ama-r").clock
    step = clock.seconds / setting.steps
    free_memory()
    stop = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        every = setting.warmup + setting.steps // 2  # one that a thread can end beside the last steps
        trainer = _saving(setting, Path(scratch), setting.model(), rows, every)
        save = trainer._save_checkpoint

        def timed(*arguments: Any) -> None:
            nonlocal stop
            stop = -now()
            save(*arguments)
            stop += now()

        trainer._save_checkpoint = timed
        clock = Clock(setting.warmup)
        clock.attach(trainer)
        trainer.train()
        (written,) = Path(scratch).glob("checkpoint-*")
        size = sum(file.stat().st_size for file in written.rglob("*") if file.is_file())
    yield Row("step without", step, "s")
    yield Row("the training stops for", stop, "s")
    yield Row("size", size / 1e9, "GB")
    # What a thread does meanwhile makes the steps slower, too.
    extra = max(clock.seconds - setting.steps * step, stop)
    yield Row("all that it adds", extra, "s")
    interval = 60 * yaml.safe_load(_PRESET.read_text(encoding="utf-8"))["training"]["checkpoint_minutes"]
    yield Row("share of the time", extra / (interval + extra), "of the time", f"one every {interval:.0f} s")


def resume(setting: Setting) -> Iterator[Row]:
    """The weights of a training that was stopped and resumed, against those of trainings without a break."""
    rows = setting.rows(2 * _EVERY, size=setting.small_size)
    straight, again = (_weights(setting, rows, stops=False) for _ in range(2))
    resumed = _weights(setting, rows, stops=True)
    for what, weights in (("two runs", again), ("a resumed run", resumed)):
        different = sum(int((one != other).sum()) for one, other in zip(straight, weights, strict=True))
        yield Row(f"{what}: weights that differ", different, f"of {sum(each.numel() for each in straight)}")
        largest = max(float((one - other).abs().max()) for one, other in zip(straight, weights, strict=True))
        yield Row(f"{what}: largest difference", largest)


def _weights(setting: Setting, rows: list[dict[str, Any]], stops: bool) -> list[torch.Tensor]:
    with tempfile.TemporaryDirectory() as scratch:
        if stops:
            trainer = _saving(setting, Path(scratch), setting.model(size=setting.small_size), rows)
            trainer.add_callback(_Stop())
            try:
                trainer.train()
            except _StoppedError:
                trainer.checkpoints.close()
        model = setting.model(size=setting.small_size, seed=1 if stops else 0)
        trainer = _saving(setting, Path(scratch), model, rows)
        trainer.train(resume_from_checkpoint=True)
        assert not stops or trainer.state.global_step == 2 * _EVERY
    weights = [parameter.detach().cpu() for parameter in model.parameters()]
    del trainer, model
    free_memory()
    return weights


def _saving(setting: Setting, folder: Path, model: Any, rows: list[dict[str, Any]], every: int = _EVERY) -> Any:
    trainer = trainer_of(setting, folder, model, rows, "ama-r")
    trainer.schedule = Schedule(every)
    return trainer


class _StoppedError(Exception):
    """Stands for a kill."""


class _Stop(TrainerCallback):  # type: ignore[misc]
    """Ends a training with its first checkpoint."""

    def on_save(self, *_: Any, **__: Any) -> None:
        raise _StoppedError
