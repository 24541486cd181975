"""A quantised base: one for reference, training and evaluation; merges and exports have the base in full."""

import math
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from automixalign.config.evaluation import ScoringSettings
from automixalign.config.experiment import parse_experiment
from automixalign.config.plan import Plan
from automixalign.config.settings import Loading
from automixalign.data.store import VALIDATION, read_split
from automixalign.method.losses import Loss
from automixalign.models.full_model import write_full_model
from automixalign.models.load import load_full_model, load_model
from automixalign.models.quantized import loading_options
from automixalign.preflight.validate import check_one_machine, plan_experiment
from automixalign.report.facts.limits import limits
from automixalign.scoring import caches
from automixalign.scoring.reference_logps import write_reference_logps
from automixalign.scoring.scorer import Scorer, pair_losses
from automixalign.steps.step import collect_warnings
from automixalign.storage import files
from automixalign.system.errors import ConfigError
from automixalign.training.specialist import SpecialistTraining
from benchmarks import tiny

WORLD = tiny.world()
BASE = WORLD.base_model


def trained(folder: Path, quantize: Any, base_model: Path = BASE, **lora: Any) -> SpecialistTraining:
    """A specialist of `format`, and the reference log-probabilities of its base, in `folder`."""
    loading = Loading(quantize=quantize)
    scoring = ScoringSettings(seed=0, batch_size=16, precision="fp32", loading=loading)
    write_reference_logps(scoring, WORLD.data, base_model, folder / "reference")
    adapter = {"rank": 2, "alpha": 8, "quantize": quantize, **lora}
    training = tiny.specialist_training(folder, lora=adapter, learning_rate=1e-2, validate_every=2)
    changes = {"loading": loading, "scoring": scoring}
    training = training.model_copy(
        update={
            "base_model": base_model,
            "reference_logps": folder / "reference",
            "settings": training.settings.model_copy(update=changes),
        }
    )
    training.run(folder)
    return training


def test_each_process_loads_onto_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate refuses a quantised model whose device has no index, or that of another process."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    options = loading_options("4bit", torch.device("cuda"), bf16=True)
    assert options["device_map"] == {"": torch.device("cuda", 3)}


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_reference_training_and_scoring_have_the_same_base(tmp_path: Path, quantize: Any) -> None:
    training = trained(tmp_path, quantize)
    rows = files.read_jsonl(training.trajectory)
    assert rows[0]["loss"]["format"] == pytest.approx(math.log(2), abs=1e-6)
    pairs = read_split(WORLD.data, "format", VALIDATION)
    reference = caches.read_cache(tmp_path / "reference" / "format", VALIDATION)
    reference = caches.join(reference, pairs.column("pair_id").to_pylist(), "reference")
    scores, in_full = (
        Scorer(load_model(training.output, BASE, loading), 16, "fp32").scores(pairs)
        for loading in (training.settings.loading, Loading())
    )
    loss = float(pair_losses(Loss(), scores, reference, pairs).mean())
    assert rows[-1]["validation"]["loss"]["format"] == pytest.approx(loss, abs=1e-5)
    chosen, others = (caches.column(table, caches.CHOSEN) for table in (scores, in_full))
    assert abs(chosen - others).max() > 5e-5, "of the base in full"


def test_without_an_address_the_adapter_stays_one(tmp_path: Path) -> None:
    base = Path(shutil.copytree(BASE, tmp_path / "base"))
    (base / "base_model.json").unlink()
    training = trained(tmp_path, "4bit", base)
    assert (training.output / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("variant", ["dora", "rslora"])
def test_a_variant_is_exported_as_peft_folds_it(tmp_path: Path, variant: str) -> None:
    training = trained(tmp_path, "4bit", **{variant: True})
    assert files.read_json(training.output / "adapter_config.json")[f"use_{variant}"]
    write_full_model(training.output, BASE, tmp_path / "full")
    base = AutoModelForCausalLM.from_pretrained(BASE)
    folded = PeftModel.from_pretrained(base, training.output).merge_and_unload().state_dict()
    stored = load_file(tmp_path / "full" / "model.safetensors")
    assert all(torch.equal(weight, stored[name]) for name, weight in folded.items())
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(stored[name], load_file(BASE / "model.safetensors")[name])


def test_without_bitsandbytes_it_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    data = tiny.experiment()
    data["training"]["lora"] = {"quantize": "8bit"}
    hint = r"training\.lora\.quantize: 8bit needs bitsandbytes.*pip install 'automixalign\[quantize\]'"
    with pytest.raises(ConfigError, match=hint):
        plan_experiment(parse_experiment(data, "test"))
    with pytest.raises(ConfigError, match=hint):
        load_full_model(BASE, Loading(quantize="8bit"))


def test_dora_on_a_base_of_8_bits_is_refused_on_a_cpu_before_any_work(tmp_path: Path) -> None:
    data = tiny.experiment()
    data["training"]["lora"] = {"quantize": "8bit", "dora": True}
    with pytest.raises(ConfigError, match=r"training\.lora\.dora: .* needs a GPU"):
        check_one_machine(parse_experiment(data, "test"))
    with pytest.raises(ConfigError, match=r"training\.lora\.dora: .* needs a GPU"):
        trained(tmp_path, "8bit", dora=True)


def test_a_plan_says_that_merges_are_of_the_base_in_full() -> None:
    data = tiny.experiment()
    data["training"]["lora"] = {"quantize": "4bit"}
    data["merges"] = ["linear", {"method": "linear", "name": "searched", "weights": "tuned"}]
    experiment = parse_experiment(data, "test")
    with collect_warnings() as warnings:
        plan_experiment(experiment)
    (sentence,) = warnings
    assert "base model in full: linear, searched." in sentence
    assert sentence.endswith("by which weights were tuned (searched).")
    assert sentence in limits(experiment, {}, [])


def test_every_stage_but_that_of_merges_gets_the_quantised_base() -> None:
    data = tiny.experiment()
    data["training"]["lora"] = {"quantize": "4bit"}
    data["merges"] = [{"method": "linear", "weights": "tuned"}]
    plan = Plan.of(parse_experiment(data, "test"), defaultdict(str))
    stages = (plan.scoring, plan.specialist, plan.specialist_losses, *plan.generalists, plan.evaluation)
    assert {stage.loading.quantize for stage in stages} == {"4bit"}
    assert plan.evaluation.loading.of("merge").quantize is None
    tuning = plan.merges[0].tuning
    assert tuning is not None
    assert tuning.loading.quantize is None


@pytest.mark.slow  # it imports peft twice
def test_a_run_without_it_neither_imports_bitsandbytes_nor_shows_its_messages() -> None:
    """peft imports it if it can, and bitsandbytes logs a hint where a processor could use a hub's kernels."""
    show = "import sys, peft; print('bitsandbytes.nn' in sys.modules)"
    for preload, imported in (("import pipelines.local.preload;", "False"), ("import automixalign;", "True")):
        command = [sys.executable, "-c", f"import warnings; warnings.simplefilter('ignore'); {preload} {show}"]
        process = subprocess.run(command, capture_output=True, text=True, check=True)
        assert (process.stdout.strip(), process.stderr) == (imported, "")
