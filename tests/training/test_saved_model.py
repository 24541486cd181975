"""A training saves the address of an adapter's base, the dtype of the base, and the same files each time."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from automixalign.models.base_address import BaseAddress
from automixalign.models.load import load_full_model, load_tokenizer
from automixalign.storage import files
from benchmarks import tiny
from tests.training.common import generalist

LORA = {"rank": 2, "target_modules": "all-linear"}


@pytest.fixture
def base(base_model: Path, tmp_path: Path) -> Path:
    """In bf16, as a model of the hub."""
    folder = Path(shutil.copytree(base_model, tmp_path / "base"))
    load_full_model(folder).bfloat16().save_pretrained(folder)
    BaseAddress("org/base", "f" * 40).write(folder)
    return folder


def train(base: Path, output: Path, **options: object) -> Path:
    output.mkdir()
    training = tiny.specialist_training(output, **options)
    training.model_copy(update={"base_model": base}).run(output)
    return training.output


def test_an_adapter_names_its_base_and_is_the_same_each_time(base: Path, tmp_path: Path) -> None:
    adapter = train(base, tmp_path / "one", lora=LORA)
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/base", "f" * 40)
    weights = load_file(adapter / "adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert load_tokenizer(adapter).chat_template == load_tokenizer(base).chat_template
    assert not {"config.json", "README.md"} & {file.name for file in adapter.iterdir()}
    assert files.digest(train(base, tmp_path / "two", lora=LORA)) == files.digest(adapter)


def test_without_an_address_the_adapter_is_folded(base: Path, tmp_path: Path) -> None:
    (base / "base_model.json").unlink()
    first, second = (train(base, tmp_path / name, lora=LORA) for name in ("one", "two"))
    assert files.digest(first) == files.digest(second)
    assert str(tmp_path) not in (first / "config.json").read_text()
    stored = load_file(first / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.bfloat16}
    assert stored.keys() == load_file(base / "model.safetensors").keys()


@pytest.fixture
def merge(base: Path, tmp_path: Path) -> Path:
    """A model beside the base, without an address, as `merge_specialists` writes it."""
    model = load_full_model(base)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    folder = tmp_path / "merge"
    model.bfloat16().save_pretrained(folder)
    load_tokenizer(base).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("lora", [LORA, None])
def test_a_generalist_starts_from_a_merge_and_is_a_full_model(
    lora: object, base: Path, merge: Path, inputs: dict[str, Any], tmp_path: Path
) -> None:
    """The base model stays the reference: the first loss is not ln 2."""
    given = {**inputs, "base_model": base, "start": merge}
    training = generalist(tmp_path / "run", given, {"method": "uniform", "init": "merge"}, lora=lora)
    training.output.parent.mkdir()
    training.run(tmp_path)
    losses = files.read_jsonl(training.trajectory)[0]["loss"].values()
    assert min(abs(loss - math.log(2)) for loss in losses) > 1e-3
    saved = AutoModelForCausalLM.from_pretrained(training.output, dtype="auto")
    assert saved.dtype == torch.bfloat16
    assert load_tokenizer(training.output).chat_template == load_tokenizer(base).chat_template
    name = "model.layers.0.mlp.up_proj.weight"
    start, end = (load_file(folder / "model.safetensors")[name].double() for folder in (merge, training.output))
    singular = torch.linalg.svdvals(end - start)
    assert singular[0] > 0.02
    is_low = singular[2] < 0.1 * singular[0]  # up to the rounding to bf16
    assert is_low == (lora is not None), "LoRA adds an update of its rank to the merge"


def test_full_fine_tuning_is_in_fp32_and_rounded_once(base: Path, tmp_path: Path) -> None:
    """Steps that are too small for bf16 add up; the first loss is ln 2, and the model is in bf16."""
    tiny.write_references(tiny.world().data, base, tmp_path / "logps")
    (tmp_path / "one").mkdir()
    training = tiny.specialist_training(tmp_path / "one", steps=20, learning_rate=2e-5, lr_scheduler="constant")
    training.model_copy(update={"base_model": base, "reference_logps": tmp_path / "logps"}).run(tmp_path)
    losses = [row["loss"]["format"] for row in files.read_jsonl(tmp_path / "one" / "trajectory.jsonl")]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    before, after = (load_file(folder / "model.safetensors") for folder in (base, training.output))
    assert {weight.dtype for weight in after.values()} == {torch.bfloat16}
    assert json.loads((training.output / "config.json").read_text())["dtype"] == "bfloat16"
    old, new = (weights["model.layers.0.mlp.up_proj.weight"].float() for weights in (before, after))
    large = old.abs() > 0.02
    lost = (old + 2e-5).bfloat16() == old.bfloat16()
    assert lost[large].all()
    assert (new != old)[large].float().mean() > 0.5
