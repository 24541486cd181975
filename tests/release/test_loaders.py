"""Other programs load every model of a run, from anywhere, and get the log-probabilities of `evaluate`."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from automixalign.config.evaluation import EvaluationSettings
from automixalign.config.models import BaseModelSettings
from automixalign.config.release import OutputSpec, PublicationSettings
from automixalign.data.store import IDS, TEST, read_split
from automixalign.method.losses import Loss
from automixalign.models.full_model import write_full_model
from automixalign.models.load import load_full_model, load_tokenizer
from automixalign.models.prepare import prepare_base_model
from automixalign.models.safety import is_adapter
from automixalign.release.publish import publish_run
from automixalign.scoring import caches
from automixalign.scoring.evaluate import evaluate
from automixalign.storage.publication import fetch
from benchmarks import tiny

LORA = {"rank": 2, "target_modules": ["q_proj", "up_proj"]}
LOADERS = """
import json, sys
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

loads, rows = json.load(sys.stdin)
results = []
for loader, folder in loads:
    if loader == "peft":
        model = AutoPeftModelForCausalLM.from_pretrained(folder)
    elif loader == "pipeline":
        generator = pipeline("text-generation", folder)
        generator([{"role": "user", "content": "Hello"}], max_new_tokens=1)
        model = generator.model
    else:
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert AutoTokenizer.from_pretrained(folder).chat_template
    dtype, logps = str(next(model.parameters()).dtype), []
    for prompt, answer in rows:
        with torch.no_grad():
            logits = model.float()(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        logps.append(logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum().item())
    results.append([dtype, logps])
print(json.dumps(results))
"""
"""Plain transformers and peft; the numbers are those of fp32."""


class Run(NamedTuple):
    """A run folder after two trainings, which was moved."""

    folder: Path
    logps: dict[str, list[float]]
    """Model -> `evaluate`'s log-probabilities of the chosen answers of the test split."""
    rows: list[tuple[list[int], list[int]]]
    """Their prompts and answers, as token ids."""

    def model(self, name: str) -> Path:
        return self.folder / "models" / name


def make_run(folder: Path, dtype: torch.dtype, has_address: bool) -> Run:
    """Train a specialist with and without LoRA on a base model with weights in `dtype`."""
    base, home = folder / "base", folder / "home"
    tiny.write_base_model(base)
    load_full_model(base).to(dtype).save_pretrained(base)
    reference = home / "models" / "reference"
    settings = {"base_model": {"source": str(base)}, "synthetic_tasks": [], "fingerprint": "", "seed": 0}
    prepare_base_model(BaseModelSettings.model_validate(settings), reference)
    if not has_address:  # as of a model on S3
        (reference / "base_model.json").unlink()
    tiny.write_data(reference, folder / "data")
    tiny.write_references(folder / "data", reference, folder / "logps")
    inputs = {"data": folder / "data", "reference_logps": folder / "logps", "base_model": reference}
    logps = {}
    for name, options in {"full": {}, "lora": {"lora": LORA}}.items():
        training = tiny.specialist_training(folder / name, learning_rate=3e-2, **options)
        training = training.model_copy(update={**inputs, "output": home / "models" / name})
        training.run(folder)
        evaluation = EvaluationSettings(
            seed=0, loss=Loss(), verifiers={}, evaluation={"precision": "fp32", "generate": False}
        )
        scores = folder / "evaluations" / name
        evaluate(
            evaluation,
            name,
            "specialist",
            **inputs,
            tokenizer=reference,
            model=training.output,
            output=scores,
        )
        logps[name] = caches.read_scores(scores, "format").column(caches.CHOSEN).to_pylist()
    pairs = read_split(folder / "data", "format", TEST, IDS)
    rows = list(zip(pairs["prompt_ids"].to_pylist(), pairs["chosen_ids"].to_pylist(), strict=True))
    return Run(home.rename(folder / "moved"), logps, rows)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[torch.dtype, bool], Run]:
    runs: dict[tuple[torch.dtype, bool], Run] = {}

    def make(dtype: torch.dtype, has_address: bool) -> Run:
        key = (dtype, has_address)
        if key not in runs:
            runs[key] = make_run(tmp_path_factory.mktemp("run"), dtype, has_address)
        return runs[key]

    return make


def load_elsewhere(run: Run, loads: list[tuple[str, Path]], cwd: Path) -> list[tuple[str, list[float]]]:
    """For each loader and folder, the dtype of the weights, and the log-probabilities of the run's rows."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", LOADERS],
        input=json.dumps([[(loader, str(folder)) for loader, folder in loads], run.rows]),
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def assert_served(run: Run, loads: list[tuple[str, str, Path]], cwd: Path, dtype: str) -> None:
    """Assert that the loaded models have the dtype and the scores of `evaluate`, and differ from another."""
    results = load_elsewhere(run, [(loader, folder) for loader, _, folder in loads], cwd)
    for (loader, name, folder), (stored, logps) in zip(loads, results, strict=True):
        assert stored == dtype, (loader, folder)
        assert logps == pytest.approx(run.logps[name], abs=2e-4), (loader, folder)
    assert run.logps["full"] != pytest.approx(run.logps["lora"], abs=0.1)


def test_models_of_a_run_folder(make: Any, tmp_path: Path) -> None:
    run = make(torch.float32, True)
    assert is_adapter(run.model("lora"))
    assert not (run.model("lora") / "config.json").exists(), "other tools would load the base model alone"
    loads = [
        *(("transformers", name, run.model(name)) for name in ("full", "lora")),
        *(("pipeline", name, run.model(name)) for name in ("full", "lora")),
        ("peft", "lora", run.model("lora")),
    ]
    assert_served(run, loads, tmp_path, "torch.float32")


@pytest.mark.slow
def test_models_in_half_precision_and_of_a_base_without_address(make: Any, tmp_path: Path) -> None:
    run, folded = make(torch.bfloat16, True), make(torch.bfloat16, False)
    write_full_model(run.model("lora"), run.model("reference"), tmp_path / "exported")
    assert not is_adapter(folded.model("lora"))
    assert folded.logps == run.logps
    loads = [
        ("transformers", "full", run.model("full")),
        ("transformers", "lora", tmp_path / "exported"),
        ("pipeline", "lora", folded.model("lora")),
    ]
    assert_served(run, loads, tmp_path, "torch.bfloat16")


@pytest.mark.slow
def test_what_is_published_needs_nothing_of_this_machine(make: Any, tmp_path: Path, s3: Any) -> None:
    run = make(torch.float32, True)
    s3.create_bucket(Bucket="served")
    settings = PublicationSettings(seed=0, run="run", output=OutputSpec(to="s3://served/run"))
    names = ("reference", "full", "lora")
    artifacts = {f"models/{name}": run.model(name) for name in names}
    publish_run(settings, artifacts, tmp_path / "publication.json")
    fetch("s3://served/run", tmp_path / "copy")
    models = tmp_path / "copy" / "models"
    assert not [file for file in models.rglob("*.json") if str(run.folder.parent) in file.read_text()]
    loads = [("transformers", name, models / name) for name in names[1:]]
    assert_served(run, [*loads, ("pipeline", "lora", models / "lora")], tmp_path, "torch.float32")
    assert load_tokenizer(models / "reference").chat_template


@pytest.mark.slow
def test_mergekit_merges_saved_models(make: Any, tmp_path: Path) -> None:
    run = make(torch.bfloat16, False)
    models = [run.model(name) for name in ("full", "lora")]
    entries = "".join(f"- model: {model}\n  parameters: {{weight: 0.5}}\n" for model in models)
    (tmp_path / "merge.yaml").write_text(f"merge_method: linear\ndtype: float32\nmodels:\n{entries}")
    command = [Path(sys.executable).with_name("mergekit-yaml"), "merge.yaml", "merged"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    full, lora, merged = (load_file(folder / "model.safetensors") for folder in (*models, tmp_path / "merged"))
    assert merged.keys() == full.keys() == lora.keys()
    for name, weight in merged.items():
        torch.testing.assert_close(weight, (full[name].float() + lora[name].float()) / 2)
