"""Trainings that are killed, or whose checkpoints are damaged, in a folder of this machine."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from automixalign.data.store import TRAIN
from automixalign.scoring import caches
from automixalign.scoring.job import Scoring
from automixalign.steps.step import run_step
from automixalign.storage import files
from automixalign.system.errors import ResourceError
from automixalign.training.averaging import FILE as AVERAGE
from automixalign.training.checkpoints.folder import (
    CHECKPOINTS_VARIABLE,
    SEAL,
    STATE,
    TRAJECTORY,
    CheckpointStore,
)
from automixalign.training.launch import launch
from benchmarks import tiny
from tests.faults.common import Damage, cut, flip, remove, write
from tests.faults.interrupted import (
    BATCHES,
    EVERYTHING,
    KILLED,
    LOG,
    STEPS,
    Fault,
    check_undisturbed,
    first_step,
    settings,
    train,
)

WEIGHTS = "state-0.safetensors"
FOREIGN_FILE = '{"files": {"../../x": {"size": 0, "sha256": "' + 64 * "0" + '"}}}'


@pytest.fixture(scope="module")
def killed_training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training killed in its last step, with whole checkpoints of steps 2 and 4."""
    output: Path = tmp_path_factory.mktemp("killed") / "run"
    assert train(EVERYTHING, output, Fault("step's end", STEPS - 1)) == KILLED
    return output


@pytest.fixture
def output(killed_training: Path, tmp_path: Path) -> Path:
    """A copy of that training."""
    return Path(shutil.copytree(killed_training, tmp_path / "run"))


def checkpoint_folder(output: Path) -> Path:
    (folder,) = (output / "checkpoints").iterdir()
    return folder


def check_finishes(output: Path, after: int, *warnings: str) -> None:
    """Started again, it goes on after a step, warns, ends as if undisturbed, and leaves no checkpoint."""
    before = len(files.read_jsonl(output / BATCHES))
    assert train(EVERYTHING, output) == 0, (output / LOG).read_text()
    check_undisturbed(EVERYTHING, output)
    log = (output / LOG).read_text()
    assert not [warning for warning in warnings if warning not in log]
    assert not list((output / "checkpoints").iterdir())
    assert first_step(output, before) == after


DAMAGES = {
    "weights cut short": (cut(WEIGHTS), f"{WEIGHTS} has "),
    "a bit of the weights": (flip(WEIGHTS), ""),
    "a bit of the optimiser": (flip(WEIGHTS, 999), f"{WEIGHTS} is not what was sealed"),
    "a bit of the task weights": (flip(STATE, 30), ""),
    "a bit of the average": (flip(AVERAGE), ""),
    "a bit of its log": (flip(TRAJECTORY, 20), ""),
    "a file removed": (remove("rng_state.pth"), "is missing"),
    "a file added": (write("pytorch_model.bin", b"x"), "does not belong to it"),
    "no seal": (remove(SEAL), "it was not finished"),
    "half a seal": (cut(SEAL), f"{SEAL} is invalid"),
    "a seal that is no text": (write(SEAL, b"\xff\0"), ""),
    "a seal of another shape": (write(SEAL, "[1, 2]"), f"{SEAL} is invalid"),
    "a seal of no files": (write(SEAL, '{"files": {}}'), ""),
    "a seal of a file elsewhere": (write(SEAL, FOREIGN_FILE), "is invalid"),
    "an empty folder": (lambda folder: (shutil.rmtree(folder), folder.mkdir()), "it was not finished"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_yields_to_the_one_before(
    output: Path, damage: Damage, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint_folder(output)
    damage(folder / "checkpoint-4")
    assert CheckpointStore(folder).last_complete() == folder / "checkpoint-2"
    warning = capfd.readouterr().err
    assert "checkpoint-4 is damaged: " in warning
    assert reason in warning


def test_with_one_checkpoint_damaged_the_training_goes_on_from_the_one_before(output: Path) -> None:
    flip(AVERAGE)(checkpoint_folder(output) / "checkpoint-4")
    check_finishes(output, 2, "checkpoint-4 is damaged: ")


def test_with_all_checkpoints_damaged_the_training_starts_again(output: Path) -> None:
    names = ("checkpoint-4", "checkpoint-2")
    for name in names:
        flip(WEIGHTS)(checkpoint_folder(output) / name)
    check_finishes(output, 0, *(f"{name} is damaged: " for name in names))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(remove(TRAJECTORY), id="the log removed"),
        pytest.param(cut(TRAJECTORY), id="the log shorter than its checkpoint"),
        pytest.param(flip(TRAJECTORY, 9), id="the log garbled"),
        pytest.param(lambda folder: (folder / "checkpoint-last").mkdir(), id="a folder that is no checkpoint"),
    ],
)
def test_damage_beside_the_checkpoints_does_no_harm(output: Path, damage: Damage) -> None:
    damage(checkpoint_folder(output))
    check_finishes(output, 4)


def kills(name: str, *faults: Fault, marks: Any = ()) -> Any:
    return pytest.param(faults, id=name, marks=marks)


def random_faults(seed: int) -> list[Fault]:
    generator = random.Random(seed)
    points = ("micro-step", "step's end", "sealed")
    return [Fault(generator.choice(points), generator.randint(1, 3)) for _ in range(3)]


@pytest.mark.parametrize(
    "faults",
    [
        kills("after every micro-step", *(Fault("micro-step", call) for call in range(1, 7))),
        kills("after every step", *(Fault("step's end", call) for call in range(1, 4))),
        kills("in a checkpoint: random state written", *(2 * [Fault("random state written", 1)])),
        kills("in a checkpoint: weights written", *(2 * [Fault("tensors written", 1)])),
        kills("in a checkpoint: average written", *(2 * [Fault("tensors written", 2)])),
        kills("in a checkpoint: before the seal", *(2 * [Fault("before the seal", 1)])),
        kills("after each checkpoint", *(3 * [Fault("sealed", 1)])),
        kills("while checkpoints are removed, and after", Fault("renamed for removal", 1), Fault("removed", 1)),
        *(kills(f"at random, seed {seed}", *random_faults(seed), marks=pytest.mark.slow) for seed in range(1)),
    ],
)
def test_a_training_killed_again_and_again_ends_in_the_same_bits(tmp_path: Path, faults: list[Fault]) -> None:
    output = tmp_path / "run"
    assert KILLED in [train(EVERYTHING, output, fault) for fault in faults]
    assert train(EVERYTHING, output) == 0, (output / LOG).read_text()
    check_undisturbed(EVERYTHING, output)
    assert not list((output / "checkpoints").iterdir())


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=[pytest.mark.slow, pytest.mark.soak])])
def test_a_specialist_whose_scoring_fails_goes_on_after_its_last_checkpoint(
    tmp_path: Path,
    environment: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    processes: int,
) -> None:
    run = tiny.specialist_training(tmp_path, checkpoint_every=2, processes=processes, micro_batch_size=2)
    scored = run.settings.model_copy(update={"score_precision": "fp32"})
    run = run.model_copy(update={"settings": scored, "scores": tmp_path / "scores"})

    def fail(*_: Any) -> None:
        raise MemoryError

    environment(**{CHECKPOINTS_VARIABLE: str(tmp_path / "checkpoints")})
    with monkeypatch.context() as patch, pytest.raises(ResourceError), run_step("train_specialist", "format"):
        patch.setattr(Scoring, "scores", fail)
        launch(run)
    assert "resumes after step" not in capfd.readouterr().err
    launch(run)
    assert "resumes after step 2" in capfd.readouterr().err
    assert not list((tmp_path / "checkpoints").iterdir())
    assert len(caches.read_cache(tmp_path / "scores", TRAIN))


def test_a_full_disk_leaves_the_checkpoint_before_whole(tmp_path: Path) -> None:
    """With room again, the training goes on from it."""
    output = tmp_path / "run"
    assert train(EVERYTHING, output, Fault("sealed", 1, "full")) == 1
    error = (output / LOG).read_text().splitlines()[-1]
    for part in ("StorageError: ", "checkpoint-4", " cannot be written: ", "and start again"):
        assert part in error
    assert [path.name for path in checkpoint_folder(output).glob("checkpoint-*")] == ["checkpoint-2"]
    check_finishes(output, 2)


@pytest.mark.parametrize(
    ("method", "lora", "micro_batch"),
    [("ama-r", False, 4), ("ama-r", True, 2), ("ama-s", False, 2), ("ama-s", True, 4)],
    ids=["ama-r", "ama-r, LoRA, accumulation", "ama-s, accumulation", "ama-s, LoRA"],
)
def test_every_kind_of_training_killed_twice_ends_in_the_same_bits(
    method: str, lora: bool, micro_batch: int, tmp_path: Path
) -> None:
    given, output = settings(method, lora, micro_batch), tmp_path / "killed"
    generator, accumulation = random.Random(f"{method} {lora} {micro_batch}"), 4 // micro_batch
    for _ in range(2):
        call = generator.randint(1, STEPS * accumulation // 2)
        assert train(given, output, Fault("micro-step", call)) == KILLED
    assert train(given, output) == 0
    check_undisturbed(given, output, accumulation=accumulation)
    rows = files.read_jsonl(output / "trajectory.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert rows[-1]["weights"] != rows[0]["weights"], "the task weights moved, so their state matters"
    assert not list((output / "checkpoints").iterdir())
    if lora:  # a set to peft, which other processes would write in another order
        modules = files.read_json(output / "model" / "adapter_config.json")["target_modules"]
        assert modules == sorted(modules)
