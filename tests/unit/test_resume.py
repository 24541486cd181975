"""A training killed with SIGKILL and started again ends as if nobody had disturbed it, to the bit."""

import json
import multiprocessing
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from interrupted import BATCHES, run

from automixalign import checkpoints, files
from automixalign.errors import TrainingError

STEPS = 6
KILLED = -9


def settings(method: str, lora: bool, micro_batch: int, **options: Any) -> str:
    training = {
        "batch_size": 4,
        "micro_batch_size": micro_batch,
        "learning_rate": 1e-2,
        "nll_weight": 0.1,
        "lora": {"rank": 2, "alpha": 4} if lora else None,
        "checkpoint_every": 2,
    }
    given = {"method": method, "eta": 0.5, **options}
    return json.dumps({"seed": 3, "training": training, "budget": {"steps": STEPS}, "method": given})


@pytest.fixture(scope="module")
def places(
    base_model: Path,
    two_tasks: Path,
    two_references: Path,
    two_losses: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """What a generalist is trained from; the policy drops attention, so that the random state matters."""
    dropping = tmp_path_factory.mktemp("dropping") / "model"
    shutil.copytree(base_model, dropping)
    config = files.read_json(dropping / "config.json")
    files.write_json(dropping / "config.json", {**config, "attention_dropout": 0.3})
    return {"data": two_tasks, "reference": two_references, "losses": two_losses, "base_model": dropping}


def train(settings: str, places: dict[str, Any], output: Path, kill: tuple[str, int] | None = None) -> int:
    """Run in a fresh process; return its exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["automixalign.train", "automixalign.trainer", "peft"])
    output.mkdir(exist_ok=True)
    process = context.Process(target=run, args=(settings, places, output, kill))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def outcome(output: Path, accumulation: int = 1) -> tuple[dict[str, str], str, dict[int, list[Any]]]:
    """Digests of the model's files, the log of task weights, and the micro-batches each step drew last."""
    model = {file.name: files.digest(file) for file in sorted((output / "model").iterdir())}
    batches: dict[int, list[Any]] = {}
    for step, rows in files.read_jsonl(output / BATCHES):
        batches.setdefault(step, []).append(rows)
    last = {step: rows[-accumulation:] for step, rows in batches.items()}
    assert sorted(last) == list(range(STEPS))
    assert not list((output / "checkpoints").iterdir()), "checkpoints of a finished training are removed"
    return model, (output / "trajectory.jsonl").read_text(), last


@pytest.mark.parametrize("method", ["ama-r", "ama-s"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("micro_batch", [4, 2], ids=["accumulation-1", "accumulation-2"])
def test_killed_twice_and_resumed_is_undisturbed(
    method: str, lora: bool, micro_batch: int, places: dict[str, Any], tmp_path: Path
) -> None:
    given = settings(method, lora, micro_batch)
    assert train(given, places, tmp_path / "whole") == 0
    generator, accumulation = random.Random(f"{method} {lora} {micro_batch}"), 4 // micro_batch
    for _ in range(2):
        at = generator.randint(1, STEPS * accumulation // 2)
        assert train(given, places, tmp_path / "killed", ("micro-step", at)) == KILLED
    assert train(given, places, tmp_path / "killed") == 0
    assert outcome(tmp_path / "killed", accumulation) == outcome(tmp_path / "whole", accumulation)
    rows = files.read_jsonl(tmp_path / "killed" / "trajectory.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert rows[-1]["weights"] != rows[0]["weights"], "the weights moved, so their state had to be kept"


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param([("micro-step", at) for at in range(1, 7)], id="every micro-step"),
        pytest.param([("step's end", at) for at in range(1, 4)], id="every step's end"),
        pytest.param([("optimiser saved", 1), ("optimiser saved", 2)], id="half a checkpoint"),
        pytest.param([("before the seal", 1), ("before the seal", 2)], id="unsealed"),
        pytest.param([("average saved", 1), ("average saved", 2)], id="the average"),
    ],
)
def test_a_kill_at_any_point_is_survived(
    kills: list[tuple[str, int]], places: dict[str, Any], tmp_path: Path
) -> None:
    """One training killed again and again, with everything that a checkpoint can hold."""
    options = {"average_iterates": 0.7, "average_alpha": True, "anneal": True, "discount": 0.9}
    given = settings("ama-r", True, 2, **options)
    assert train(given, places, tmp_path / "whole") == 0
    codes = [train(given, places, tmp_path / "killed", kill) for kill in kills]
    assert KILLED in codes
    assert train(given, places, tmp_path / "killed") == 0
    assert outcome(tmp_path / "killed", 2) == outcome(tmp_path / "whole", 2)


def test_a_damaged_checkpoint_is_passed_over(places: dict[str, Any], tmp_path: Path) -> None:
    given = settings("ama-s", False, 4)
    assert train(given, places, tmp_path / "whole") == 0
    assert train(given, places, tmp_path / "killed", ("micro-step", 6)) == KILLED
    (folder,) = (tmp_path / "killed" / "checkpoints").iterdir()
    last = checkpoints.last_whole(folder)
    assert last == folder / "checkpoint-4"
    weights = bytearray((last / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (last / "model.safetensors").write_bytes(weights)
    assert checkpoints.last_whole(folder) == folder / "checkpoint-2"
    with (folder / "trajectory.jsonl").open("a") as log:
        log.write('{"step": 6, "wei')
    assert train(given, places, tmp_path / "killed") == 0
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    drawn = [step for step, _ in files.read_jsonl(tmp_path / "killed" / BATCHES)]
    assert drawn == [0, 1, 2, 3, 4, 5, 2, 3, 4, 5], "it went on from the second step"


def test_checkpoints_of_another_training_are_not_taken_up(places: dict[str, Any], tmp_path: Path) -> None:
    """Another eta, another seed: each has a folder of its own."""
    for given in (settings("ama-r", True, 4), settings("ama-r", True, 4, eta=0.4), settings("ama-s", True, 4)):
        assert train(given, places, tmp_path / "run", ("micro-step", 4)) == KILLED
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 3


def test_a_log_shorter_than_its_checkpoint_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "trajectory.jsonl"
    log.write_text('{"step": 1}\n{"step": 2')
    checkpoints.keep_lines(log, 1)
    assert log.read_text() == '{"step": 1}\n'
    with pytest.raises(TrainingError, match="has 1 lines, but the checkpoint 2 steps"):
        checkpoints.keep_lines(log, 2)
