"""Generalists of the tiny tasks, a trainer of two pairs, and the comparison of two trainings."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import TrainingArguments

from automixalign.config.methods import GeneralistSettings
from automixalign.config.settings import PLAIN, Loading
from automixalign.method.losses import Loss
from automixalign.method.mixer import Mixer
from automixalign.models.load import load_full_model
from automixalign.steps.jobs.job import JOB, PackedJob, error_of, result_file
from automixalign.steps.jobs.launch import start_processes
from automixalign.storage import files
from automixalign.system.flatten import flatten
from automixalign.training.checkpoints.schedule import Schedule
from automixalign.training.generalist import GeneralistTraining
from automixalign.training.trainer import MixingTrainer
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


def tiny_trainer(
    base_model: Path,
    folder: Path,
    schedule: Schedule,
    *,
    steps: int = STEPS,
    lora: bool = False,
    **options: Any,
) -> MixingTrainer:
    """A trainer of two equal pairs, on the CPU."""
    row = {"prompt_ids": [1, 5], "chosen_ids": [6, 2], "rejected_ids": [7, 2]}
    logps = {"ref_chosen_logps": -1.0, "ref_rejected_logps": -1.0}
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )
    model = load_full_model(base_model)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    return MixingTrainer(
        get_peft_model(model, config) if lora else model,
        arguments,
        datasets={"task": Dataset.from_list([{**row, **logps}] * 2)},
        mixer=Mixer({"task": 2}, 0),
        loss=Loss(),
        trajectory=folder / "trajectory.jsonl",
        schedule=schedule,
        **options,
    )
