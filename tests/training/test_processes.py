"""Two processes train what one process with the same global batch trains."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from automixalign.config.experiment import parse_experiment
from automixalign.config.methods import GeneralistSettings
from automixalign.storage import files
from automixalign.system.errors import CacheError, ConfigError, TrainingError
from automixalign.training.checkpoints import SEAL
from automixalign.training.generalist import GeneralistTraining
from automixalign.training.launch import train as train_it
from tests.faults import interrupted

STEPS = 4


@pytest.fixture(scope="module")
def places(
    base_model: Path, two_tasks: Path, two_reference_logps: Path, two_losses: list[Path]
) -> dict[str, Any]:
    return {
        "data": two_tasks,
        "reference_logps": two_reference_logps,
        "losses": two_losses,
        "base_model": base_model,
    }


def train(output: Path, places: dict[str, Any], method: dict[str, Any], **training: Any) -> dict[str, Any]:
    given = {
        "seed": 1,
        "training": {"batch_size": 8, "learning_rate": 1e-2, **training},
        "budget": {"steps": STEPS},
        "method": method,
    }
    settings = GeneralistSettings.model_validate_json(json.dumps(given))
    log = output / "log.jsonl"
    return train_it(GeneralistTraining(settings=settings, **places, output=output / "model", trajectory=log))


def surroundings() -> tuple[list[Any], dict[str, str]]:
    """What a training in several processes could leave changed in this one."""
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)], dict(os.environ)


@pytest.mark.parametrize(
    ("method", "training", "furthest"),
    [
        ({"method": "ama-r", "eta": 0.5, "average_iterates": 0.5}, {}, 1e-6),
        ({"method": "ama-s", "eta": 0.5}, {"micro_batch_size": 2, "lora": {"rank": 2, "alpha": 4}}, 1e-4),
    ],
    ids=["ama-r", "ama-s, LoRA, accumulation"],
)
def test_two_processes_equal_one(
    method: dict[str, Any],
    training: dict[str, Any],
    furthest: float,
    places: dict[str, Any],
    tmp_path: Path,
) -> None:
    """Up to rounding, of which Adam makes more where a gradient is below its epsilon of 1e-8.

    An adapter's gradients begin at 0, and one of 2e-9 among others of 1e-5 turned 3e-12 of rounding, in sums
    that are taken in another order, into 1.2e-6 of the weight: a few may be further off than the rest.
    """
    one = train(tmp_path / "one", places, method, **training)
    before = surroundings()
    two = train(tmp_path / "two", places, method, processes=2, **training)
    assert surroundings() == before, "the launcher leaves signals and environment as they were"
    clock = {"seconds": 0, "tokens_per_second": 0}
    assert {**one, **clock} == {**two, **clock}
    (left,), (right,) = ((tmp_path / name / "model").glob("*.safetensors") for name in ("one", "two"))
    weights, others = load_file(left), load_file(right)
    assert weights.keys() == others.keys()
    apart = torch.cat([(tensor - others[name]).abs().flatten() for name, tensor in weights.items()])
    assert apart.quantile(0.99) <= 1e-6
    assert apart.max() <= furthest
    rows, other_rows = (files.read_jsonl(tmp_path / name / "log.jsonl") for name in ("one", "two"))
    assert len(rows) == STEPS
    for row, other in zip(rows, other_rows, strict=True):
        assert row["pairs"] == other["pairs"], "the ranks' slices together are the one process's batch"
        for key in ("weights", "loss", "excess", "margin"):
            assert row[key] == pytest.approx(other[key], abs=1e-6)
    assert rows[-1]["weights"] != rows[0]["weights"]


def test_the_first_error_of_a_process_is_told(places: dict[str, Any], tmp_path: Path) -> None:
    missing = {**places, "losses": places["losses"][:1]}
    with pytest.raises(CacheError, match="there are no specialist losses of task format"):
        train(tmp_path, missing, {"method": "ama-r"}, processes=2)
    assert not (tmp_path / "model").exists()


def test_an_unexpected_failure_is_named(places: dict[str, Any], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(places["data"], broken)
    (broken / "card.json").write_text("cut short")
    with pytest.raises(TrainingError, match=r"one of the processes failed: JSONDecodeError: "):
        train(tmp_path, {**places, "data": broken}, {"method": "ama-r"}, processes=2)


def test_pairs_must_divide_among_the_processes(experiment_data: dict[str, Any]) -> None:
    experiment_data["training"] |= {"batch_size": 6, "micro_batch_size": 2, "processes": 2}
    with pytest.raises(ConfigError, match="'batch_size' must be a multiple of 'processes' times"):
        parse_experiment(experiment_data, "test")


def test_two_processes_killed_from_outside_go_on_to_the_same_bits(
    places: dict[str, Any], tmp_path: Path
) -> None:
    """The launching process gets SIGKILL, its workers end with it, a second start completes the training."""
    given = {
        "seed": 1,
        "training": {"batch_size": 4, "learning_rate": 1e-2, "processes": 2, "checkpoint_every": 2},
        "budget": {"steps": 40},
        "method": {"method": "ama-s", "eta": 0.5},
    }

    def start(output: Path) -> Any:
        return interrupted.start(json.dumps(given), output)

    whole = start(tmp_path / "whole")
    whole.join()
    killed = start(tmp_path / "killed")
    checkpoints = tmp_path / "killed" / "checkpoints"
    deadline = time.monotonic() + 240
    while not list(checkpoints.glob(f"*/checkpoint-*/{SEAL}")):
        assert killed.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    workers = psutil.Process(killed.pid).children()
    assert len(workers) >= 2
    killed.kill()
    killed.join()
    assert not psutil.wait_procs(workers, timeout=30)[1], "the system ends the workers of a dead launcher"
    assert not (tmp_path / "killed" / "model").exists(), "killed too late to show anything"
    again = start(tmp_path / "killed")
    again.join()
    assert (whole.exitcode, killed.exitcode, again.exitcode) == (0, -9, 0)
    for name in ("model/model.safetensors", "trajectory.jsonl"):
        assert files.digest(tmp_path / "killed" / name) == files.digest(tmp_path / "whole" / name)
