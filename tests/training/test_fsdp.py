"""A model divided among two processes (FSDP2) learns what a whole one learns, and goes on after a kill."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from automixalign.config.experiment import parse_experiment
from automixalign.config.methods import GeneralistSettings
from automixalign.storage import files
from automixalign.system.errors import ConfigError, ResourceError
from automixalign.training import checkpoints
from automixalign.training.generalist import GeneralistTraining
from automixalign.training.job import JOB, RESULT, Job, error_of
from automixalign.training.launch import start_processes

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


def training(output: Path, places: dict[str, Any], **options: Any) -> GeneralistTraining:
    given = {
        "seed": 1,
        "training": {"batch_size": 8, "learning_rate": 1e-2, "checkpoint_every": 2, **options},
        "budget": {"steps": STEPS},
        "method": {"method": "ama-r", "eta": 0.5},
    }
    settings = GeneralistSettings.model_validate(given)
    return GeneralistTraining(
        settings=settings, **places, output=output / "model", trajectory=output / "log.jsonl"
    )


def in_two(output: Path, places: dict[str, Any], *dies_after: str, **options: Any) -> dict[str, Any]:
    """Train with the model divided, in two workers of `fsdp_worker.py`."""
    output.mkdir(exist_ok=True)
    divided = training(output, places, fsdp=True, processes=2, **options)
    files.write_text(output / JOB, Job.of(divided).model_dump_json())
    try:
        start_processes(2, [str(Path(__file__).with_name("fsdp_worker.py")), str(output), *dies_after])
    except Exception as failure:
        raise error_of(output, failure) from failure
    result: dict[str, Any] = files.read_json(output / RESULT)
    return result


def weights(output: Path) -> dict[str, torch.Tensor]:
    (file,) = (output / "model").glob("*.safetensors")
    return load_file(file)


def compare(whole: Path, divided: Path, tolerance: float) -> None:
    ones, others = weights(whole), weights(divided)
    assert ones.keys() == others.keys()
    for name, tensor in ones.items():
        assert torch.allclose(tensor, others[name], rtol=0, atol=tolerance), name
    rows = [files.read_jsonl(folder / "log.jsonl") for folder in (whole, divided)]
    assert [row["step"] for row in rows[1]] == list(range(1, STEPS + 1))
    for row, other in zip(*rows, strict=True):
        assert row["pairs"] == other["pairs"]
        for key in ("weights", "loss"):
            assert row[key] == pytest.approx(other[key], abs=1e-5)


def test_a_divided_model_learns_what_a_whole_one_learns_with_a_kill_on_the_way(
    places: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whole").mkdir()
    whole = training(tmp_path / "whole", places).run(tmp_path)
    monkeypatch.setenv(checkpoints.CHECKPOINTS_VARIABLE, str(tmp_path / "checkpoints"))
    with pytest.raises(ResourceError, match="one of the processes was killed"):
        in_two(tmp_path / "divided", places, "3", gradient_checkpointing=True)
    (kept,) = (tmp_path / "checkpoints").iterdir()
    assert checkpoints.CheckpointStore(kept).last_complete() == kept / "checkpoint-2"
    divided = in_two(tmp_path / "divided", places, gradient_checkpointing=True)
    assert divided["trained_parameters"] == whole["trained_parameters"]
    compare(tmp_path / "whole", tmp_path / "divided", 1e-6)


def test_an_adapter_of_a_divided_model_learns_what_that_of_a_whole_one_learns(
    places: dict[str, Any], tmp_path: Path
) -> None:
    """The tolerance is wider: an adapter's first gradients are near 0, where Adam turns rounding into steps."""
    lora = {"rank": 2, "alpha": 4}
    (tmp_path / "whole").mkdir()
    training(tmp_path / "whole", places, lora=lora).run(tmp_path)
    in_two(tmp_path / "divided", places, lora=lora)
    compare(tmp_path / "whole", tmp_path / "divided", 1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"fsdp": True}}, "'fsdp' divides a model among 'processes'"),
        (
            {
                "training": {"fsdp": True, "processes": 2},
                "methods": [{"method": "ama-r", "average_iterates": 1}],
            },
            "methods: 'average_iterates' needs whole parameters",
        ),
        ({"training": {"nodes": 2}}, "training.nodes: more than one need 'cluster.train_job'"),
        (
            {
                "training": {"nodes": 2},
                "cluster": {"train_job": {"storage": "s3://jobs/here"}},
                "specialist_losses": {"cross_fit": True},
            },
            "specialist_losses.cross_fit: its trainings run in one pod",
        ),
    ],
)
def test_what_cannot_go_together_is_refused(
    changes: dict[str, Any], message: str, experiment_data: dict[str, Any]
) -> None:
    experiment_data["training"] |= {"batch_size": 8} | changes.pop("training")
    with pytest.raises(ConfigError, match=message):
        parse_experiment(experiment_data | changes, "test")
