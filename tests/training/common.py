"""Generalists of the tiny tasks, and the comparison of two trainings."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from automixalign.config.methods import GeneralistSettings
from automixalign.config.settings import PLAIN, Loading
from automixalign.steps.jobs.job import JOB, PackedJob, error_of, result_file
from automixalign.steps.jobs.launch import start_processes
from automixalign.storage import files
from automixalign.system.flatten import flatten
from automixalign.training.generalist import GeneralistTraining
from benchmarks.tiny import llama

STEPS = 4
CLOCK = {"seconds": 0, "validation_seconds": 0, "tokens_per_second": 0}
"""The facts in which equal trainings differ."""


def base_with(
    shape: dict[str, Any], base_model: Path, folder: Path, dtype: torch.dtype = torch.float32
) -> Path:
    """A base model of another shape with the tokenizer of `base_model`."""
    shutil.copytree(base_model, folder)
    config = files.read_json(folder / "config.json")
    same = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")
    llama(**{key: config[key] for key in same}, **shape).to(dtype).save_pretrained(folder)
    return folder


def generalist(
    output: Path,
    inputs: dict[str, Any],
    method: dict[str, Any] | None = None,
    steps: int = STEPS,
    loading: Loading = PLAIN,
    **training: Any,
) -> GeneralistTraining:
    """A training into `output/model` and `output/log.jsonl`; `training` has keys of that section."""
    scoring = {"seed": 1, "batch_size": 8, "precision": "fp32"}
    settings = {
        "seed": 1,
        "training": {"batch_size": 8, "learning_rate": 1e-2, **training},
        "budget": {"steps": steps},
        "method": method or {"method": "ama-r", "eta": 0.5},
        "loading": loading.model_dump(),
        "scoring": scoring if "validate_every" in training else None,
    }
    return GeneralistTraining(
        settings=GeneralistSettings.model_validate(settings),
        **inputs,
        output=output / "model",
        trajectory=output / "log.jsonl",
    )


def train_whole(output: Path, inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Train in this process."""
    output.mkdir()
    return generalist(output, inputs, **options).run(output)


def train_divided(output: Path, inputs: dict[str, Any], *dies_after: str, **options: Any) -> dict[str, Any]:
    """Train with the model divided, in two workers of `fsdp_worker.py`."""
    output.mkdir(exist_ok=True)
    training = generalist(output, inputs, fsdp=True, processes=2, **options)
    files.write_text(output / JOB, PackedJob.of(training).model_dump_json())
    try:
        start_processes(2, [str(Path(__file__).with_name("fsdp_worker.py")), str(output), *dies_after])
    except Exception as failure:
        raise error_of(output, failure) from failure
    result: dict[str, Any] = files.read_json(output / result_file(0))
    return result


def assert_same(
    one: Path, other: Path, atol: float = 1e-6, largest: float | None = None, log_atol: float = 1e-6
) -> None:
    """Assert that two trainings agree in their weights and their logs.

    Args:
        one: the output of a training.
        other: the output of the other.
        atol: tolerance of the weights.
        largest: tolerance of the 1 % of the weights that differ most; by default `atol`.
        log_atol: tolerance of the logs.
    """
    (file,), (other_file,) = ((folder / "model").glob("*.safetensors") for folder in (one, other))
    weights, others = load_file(file), load_file(other_file)
    assert weights.keys() == others.keys()
    apart = torch.cat([(tensor - others[name]).abs().flatten() for name, tensor in weights.items()])
    assert apart.quantile(0.99) <= atol
    assert apart.max() <= (largest or atol)
    rows, other_rows = (files.read_jsonl(folder / "log.jsonl") for folder in (one, other))
    assert [row["step"] for row in other_rows] == list(range(1, STEPS + 1))
    for row, other_row in zip(rows, other_rows, strict=True):
        assert row["pairs"] == other_row["pairs"], "the processes' slices together are one process's batch"
        for key in ("weights", "loss", "excess", "margin"):
            assert row[key] == pytest.approx(other_row[key], abs=log_atol)
        validated, others_validated = (dict(flatten(each.get("validation", {}))) for each in (row, other_row))
        assert validated == pytest.approx(others_validated, abs=log_atol)
    assert rows[-1]["weights"] != rows[0]["weights"]


def tensor_bytes(file: Path) -> int:
    """Bytes of the tensors of a safetensors file, without its header."""
    with file.open("rb") as stream:
        return file.stat().st_size - 8 - int.from_bytes(stream.read(8), "little")
