"""Short trainings of ours and of TRL on the same pairs, timed between two points at which the GPU is idle."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from transformers import TrainerCallback

from automixalign.config.settings import Loading
from automixalign.config.training import Budget, TrainingSettings, TrainingSpec
from automixalign.models.load import uses_bf16
from automixalign.storage import files
from automixalign.training.train import training_arguments
from benchmarks import train_step
from benchmarks.gpu_check.setting import Setting, now

_LOGGING_STEPS = 50
"""As in a training of 1,000 steps, for both trainers."""


class Training(NamedTuple):
    """A training that has ended: its time, and the lines of its trajectory, which TRL has not."""

    clock: "Clock"
    log: list[dict[str, Any]]


@dataclass
class Clock(TrainerCallback):  # type: ignore[misc]
    """The time and the tokens of a training's steps after its first ones.

    Args:
        warmup: steps that do not count.
        begins, ends: called when the time begins and ends.
    """

    warmup: int
    begins: Callable[[], object] = lambda: None
    ends: Callable[[], object] = lambda: None
    marks: list[float] = field(default_factory=list)
    counted: list[Any] = field(default_factory=list)

    def attach(self, trainer: Any) -> None:
        """Time a trainer; call this before it trains."""
        trainer.add_callback(self)
        get_batch_samples = trainer.get_batch_samples

        def counting(*arguments: Any) -> Any:
            batches, items = get_batch_samples(*arguments)
            if len(self.marks) == 1:  # summed at the end: a sum now would wait for the GPU
                self.counted += [
                    batch["tokens" if "tokens" in batch else "attention_mask"] for batch in batches
                ]
            return batches, items

        trainer.get_batch_samples = counting

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.warmup:
            self.marks.append(now())
            self.begins()
        elif state.global_step == args.max_steps:
            self.ends()
            self.marks.append(now())

    @property
    def seconds(self) -> float:
        """Of all steps that count."""
        return self.marks[1] - self.marks[0]

    @property
    def tokens(self) -> int:
        """Of the pairs of these steps: each side with its prompt, without padding."""
        return sum(int(each.sum()) for each in self.counted)


def spec_of(setting: Setting) -> TrainingSpec:
    """The `training` of the product's configuration."""
    batch = setting.pairs * setting.micro_steps
    return TrainingSpec(batch_size=batch, micro_batch_size=setting.pairs, learning_rate=1e-5)


def loading_of(way: str, **options: Any) -> Loading:
    """How the product holds a model with a way of attention; `options` are fields of it."""
    return Loading.model_validate({"attn_implementation": way, **options})


def trainer_of(
    setting: Setting,
    folder: Path,
    model: Any,
    rows: list[dict[str, Any]],
    kind: str,
    way: str = "sdpa",
    **options: Any,
) -> Any:
    """A trainer of the model, with as many steps as the pairs give.

    Args:
        folder: for checkpoints and the log.
        kind: `trl`, or the name of one of our methods, which gets the product's own arguments.
        way: of attention.
        options: of TRL's arguments.
    """
    steps = len(rows) // (setting.pairs * setting.micro_steps)
    spec = spec_of(setting)
    if kind != "trl":
        settings = TrainingSettings(seed=0, training=spec, budget=Budget(steps=steps))
        args = training_arguments(settings, steps, folder)
        args.logging_steps = _LOGGING_STEPS
        return train_step.ours(model, rows, args, kind, folder, loading=loading_of(way))
    model.set_attn_implementation(way)
    options |= {"gradient_accumulation_steps": setting.micro_steps, "gradient_checkpointing": False}
    options |= {"learning_rate": spec.learning_rate, "logging_steps": _LOGGING_STEPS}
    args = train_step.config(folder, setting.pairs, steps, uses_bf16(spec.precision), **options)
    return train_step.trl(model, rows, args, tuned=True)


def train(
    setting: Setting,
    model: Any,
    rows: list[dict[str, Any]],
    kind: str,
    clock: Clock | None = None,
    way: str = "sdpa",
    **options: Any,
) -> Training:
    """Train a model on pairs; the arguments are those of `trainer_of`."""
    clock = clock or Clock(setting.warmup)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        trainer = trainer_of(setting, folder, model, rows, kind, way, **options)
        clock.attach(trainer)
        trainer.train()
        log = [] if kind == "trl" else list(files.read_jsonl(folder / "log.jsonl"))
    return Training(clock, log)
