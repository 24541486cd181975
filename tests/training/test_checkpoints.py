"""When checkpoints are saved, by which thread, and how large they are; `tests/faults` kills and damages."""

import itertools
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from automixalign.storage import files
from automixalign.system.errors import StorageError
from automixalign.training import averaging, trainer
from automixalign.training.checkpoints.folder import SEAL, STATE, CheckpointStore
from automixalign.training.checkpoints.schedule import Schedule
from automixalign.training.checkpoints.size import checkpoint_bytes
from automixalign.training.trainer import MixingTrainer
from tests.training.common import STEPS, tensor_bytes, tiny_trainer

SMALL_FILES = 100_000
"""More than the bytes of random state, logs and headers of tensors in a tiny checkpoint."""
STEP_BYTES = 4
"""AdamW counts the steps of each tensor."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def test_the_last_two_checkpoints_stay_and_the_last_step_has_none(base_model: Path, tmp_path: Path) -> None:
    tiny_trainer(base_model, tmp_path, Schedule(every=1)).train()
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3"]
    assert CheckpointStore(tmp_path).last_complete() == tmp_path / "checkpoint-3"


def test_minutes_count_from_the_last_checkpoint(base_model: Path, tmp_path: Path) -> None:
    """Half a minute passes between two looks at the clock: at the start, after each step, and at a save."""
    schedule = Schedule(minutes=1, clock=partial(next, itertools.count(0, 30)))
    tiny_trainer(base_model, tmp_path, schedule).train()
    assert names(tmp_path) == ["checkpoint-2"]


def test_steps_and_minutes_each_make_a_checkpoint_due() -> None:
    now = [0.0]
    schedule = Schedule(every=10, minutes=1, clock=lambda: now[0])
    assert not schedule.is_due(5)
    assert schedule.is_due(10)
    now[0] = 60.0
    assert schedule.is_due(11)
    schedule.restart()
    assert not schedule.is_due(12)
    assert not Schedule().is_due(10)


class _Release(TrainerCallback):  # type: ignore[misc]
    """Lets the thread write when the step after the checkpoint has ended."""

    def __init__(self, go: threading.Event) -> None:
        self.go = go

    def on_step_end(self, _: Any, state: Any, __: Any, **___: Any) -> None:
        if state.global_step == STEPS - 1:
            self.go.set()


def test_a_checkpoint_written_in_the_background_is_that_of_its_step(
    base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training goes on before the thread has written."""
    schedule = {"schedule": Schedule(every=2), "average_iterates": 1.0}
    tiny_trainer(base_model, tmp_path / "direct", **schedule).train()
    go, write = threading.Event(), trainer.save

    def write_later(*arguments: Any) -> None:
        assert go.wait(30)
        write(*arguments)

    monkeypatch.setattr(trainer, "save", write_later)
    monkeypatch.setattr(MixingTrainer, "saves_in_background", True)
    tiny_trainer(base_model, tmp_path / "thread", callbacks=[_Release(go)], **schedule).train()
    for name in ("state-0.safetensors", averaging.FILE, STATE):
        digests = [files.digest(tmp_path / way / "checkpoint-2" / name) for way in ("direct", "thread")]
        assert digests[0] == digests[1]
    assert (tmp_path / "thread" / "checkpoint-2" / SEAL).exists()


def test_an_error_of_the_thread_ends_the_training(
    base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer, "save", fail)
    monkeypatch.setattr(MixingTrainer, "saves_in_background", True)
    with pytest.raises(StorageError, match="checkpoint-1"):
        tiny_trainer(base_model, tmp_path, Schedule(every=1)).train()
    assert names(tmp_path) == []


def test_the_seal_waits_for_the_parts_of_other_processes(tmp_path: Path) -> None:
    store, checkpoint = CheckpointStore(tmp_path), tmp_path / "checkpoint-1"
    files.write_json(checkpoint / STATE, {})
    parts = ["state-0.safetensors", "state-1.safetensors"]
    store.add(checkpoint, (checkpoint / parts[0]).touch, parts)
    time.sleep(0.3)
    assert not (checkpoint / SEAL).exists()
    (checkpoint / parts[1]).touch()
    store.wait()
    assert store.last_complete() == checkpoint


@pytest.mark.parametrize(
    ("copies", "options"),
    [(0, {}), (0, {"lora": True}), (1, {"average_iterates": 1.0})],
    ids=["full", "LoRA", "full, averaged"],
)
def test_a_checkpoint_has_as_many_bytes_as_computed(
    base_model: Path, tmp_path: Path, copies: int, options: dict[str, Any]
) -> None:
    policy = tiny_trainer(base_model, tmp_path, Schedule(every=2), **options)
    policy.train()
    trained = sum(weight.numel() for weight in policy.trained)
    checkpoint = tmp_path / "checkpoint-2"
    tensors = sum(map(tensor_bytes, checkpoint.glob("*.safetensors")))
    assert tensors == checkpoint_bytes(trained, extra_copies=copies) + STEP_BYTES * len(policy.trained)
    assert sum(path.stat().st_size for path in checkpoint.iterdir()) - tensors <= SMALL_FILES
