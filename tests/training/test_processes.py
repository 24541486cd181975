"""Two processes train what one process with the same global batch trains."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from automixalign.config.experiment import parse_experiment
from automixalign.steps.jobs.job import error_of
from automixalign.storage import files
from automixalign.system.errors import CacheError, ConfigError, ProcessError
from automixalign.training.checkpoints.folder import SEAL
from automixalign.training.launch import train
from tests.faults import interrupted
from tests.training.common import CLOCK, assert_same, generalist


def process_state() -> tuple[list[Any], dict[str, str]]:
    """The parts of this process that a launcher could change: signal handlers and environment."""
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)], dict(os.environ)


@pytest.mark.parametrize(
    ("method", "training", "largest"),
    [
        (
            {"method": "ama-s", "eta": 0.5, "average_iterates": 0.5},
            {"micro_batch_size": 2, "lora": {"rank": 2, "alpha": 4}, "validate_every": 2, "keep": "best"},
            1e-4,
        ),
        pytest.param({"method": "pike", "every": 2, "pairs": 5}, {}, 1e-5, marks=pytest.mark.slow),
    ],
    ids=["ama-s, LoRA, accumulation, validation", "pike"],
)
def test_two_processes_equal_one(
    method: dict[str, Any], training: dict[str, Any], largest: float, inputs: dict[str, Any], tmp_path: Path
) -> None:
    """Up to rounding, of which Adam makes more where a gradient is below its epsilon of 1e-8.

    The gradients of an adapter begin at 0. Sums in another order differ by 3e-12; with a gradient of 2e-9, Adam
    makes 1.2e-6 of that. A few weights may therefore differ by more than the others.
    """
    one = train(generalist(tmp_path / "one", inputs, method, **training))
    before = process_state()
    two = train(generalist(tmp_path / "two", inputs, method, processes=2, **training))
    assert process_state() == before, "the launcher restores signals and environment"
    assert {**one, **CLOCK} == {**two, **CLOCK}
    assert_same(tmp_path / "one", tmp_path / "two", largest=largest)


def test_the_first_error_of_a_process_is_raised(inputs: dict[str, Any], tmp_path: Path) -> None:
    incomplete = {**inputs, "losses": inputs["losses"][:1]}
    with pytest.raises(CacheError, match="there are no specialist losses of task format"):
        train(generalist(tmp_path, incomplete, processes=2))
    assert not (tmp_path / "model").exists()


def test_an_unexpected_failure_is_named(tmp_path: Path) -> None:
    files.write_json(tmp_path / "error-1.json", ["JSONDecodeError", "Expecting value"])
    error = error_of(tmp_path, RuntimeError())
    assert isinstance(error, ProcessError)
    assert str(error) == "one of the processes failed: JSONDecodeError: Expecting value"


def test_pairs_must_divide_among_the_processes(experiment_data: dict[str, Any]) -> None:
    experiment_data["training"] |= {"batch_size": 6, "micro_batch_size": 2, "processes": 2}
    with pytest.raises(ConfigError, match="'batch_size' must be a multiple of 'processes' times"):
        parse_experiment(experiment_data, "test")


@pytest.mark.slow
def test_two_processes_killed_from_outside_go_on_to_the_same_bits(tmp_path: Path) -> None:
    """The launching process gets SIGKILL, its workers end with it, a second start completes the training."""
    by_time = {"checkpoint_every": 0, "checkpoint_minutes": 0.001}
    settings = {
        "seed": 1,
        "training": {"batch_size": 4, "learning_rate": 1e-2, "processes": 2, **by_time},
        "budget": {"steps": 40},
        "method": {"method": "ama-s", "eta": 0.5},
    }

    def start(output: Path) -> Any:
        return interrupted.start(json.dumps(settings), output)

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
