"""The start of a divided training: what it reads, what it takes, and its first loss in bf16."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from automixalign.config.evaluation import ScoringSettings
from automixalign.config.experiment import parse_experiment
from automixalign.scoring.reference_logps import write_reference_logps
from automixalign.storage import files
from tests.training.common import base_with, tensor_bytes, train_divided


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="full"),
        pytest.param({"lora": {"rank": 2, "target_modules": ["q_proj"]}}, id="lora", marks=pytest.mark.soak),
    ],
)
def test_the_first_loss_in_bf16_is_ln_2(
    options: dict[str, Any], inputs: dict[str, Any], experiment_data: dict[str, Any], tmp_path: Path
) -> None:
    """The reference is scored with the loading that the experiment gives to both stages."""
    shape = {"num_hidden_layers": 2, "tie_word_embeddings": True}
    base = base_with(shape, inputs["base_model"], tmp_path / "base", torch.bfloat16)
    training = {"fsdp": True, "processes": 2, "precision": "bf16", **options}
    experiment_data["training"] |= {"batch_size": 8, **training}
    loading = parse_experiment(experiment_data, "test").loading
    scoring = ScoringSettings(seed=0, batch_size=6, precision="bf16", loading=loading)
    logps = tmp_path / "logps"
    write_reference_logps(scoring, inputs["data"], base, logps)
    inputs = {**inputs, "base_model": base, "reference_logps": logps}
    train_divided(
        tmp_path / "divided", inputs, steps=1, loading=loading, precision="bf16", micro_batch_size=2, **options
    )
    losses = files.read_jsonl(tmp_path / "divided" / "log.jsonl")[0]["loss"]
    assert losses == pytest.approx(dict.fromkeys(losses, math.log(2)), abs=1e-6)


@pytest.mark.slow
def test_one_process_reads_the_model_and_the_others_hold_their_part(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the policy is read, and a second copy of it would exceed the peaks."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # glibc gives tensors back at once
    layers, heads = 6, {"num_attention_heads": 12, "num_key_value_heads": 12}
    shape = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": layers, **heads}
    base = base_with(shape, inputs["base_model"], tmp_path / "base")
    train_divided(tmp_path / "divided", {**inputs, "base_model": base}, steps=1, batch_size=2)
    first, second = (files.read_json(tmp_path / "divided" / f"start-{rank}.json") for rank in range(2))
    whole = tensor_bytes(base / "model.safetensors")
    assert (first["read"], second["read"]) == ([whole], [0])
    part, slack = whole / 2, whole / layers + 20e6
    assert second["peak"] < part + slack < whole
    assert first["peak"] < whole + part + slack < 2 * whole
