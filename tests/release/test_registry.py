"""The registry: the gate, what a version holds, and that a consumer gets the pipeline's own model."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from peft import LoraConfig, get_peft_model

from automixalign.config.experiment import RegistrySettings, parse_experiment
from automixalign.config.release import RegistrySpec
from automixalign.models.load import load_full_model, load_model, load_tokenizer
from automixalign.release.register import gate, register
from automixalign.steps.tracking.spool import FOLDER, RUN_ID, URI
from automixalign.storage import files
from automixalign.system.errors import ConfigError
from benchmarks.servers.mlflow_server import server
from benchmarks.servers.mlflow_store import sqlite_store
from benchmarks.servers.ports import free_port

QUESTION = [{"role": "user", "content": "12+3="}]


def entry(name: str, worst: float, family: str = "generalist", accuracy: float = 0.9) -> dict[str, Any]:
    return {
        "model": name,
        "family": family,
        "worst": {"excess": worst, "accuracy": accuracy},
        "average": {"excess": worst / 2, "accuracy": accuracy},
    }


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A SQLite store, named by the environment."""
    uri = sqlite_store(tmp_path / "mlflow.db")
    monkeypatch.setenv(URI, uri)
    for name in (RUN_ID, FOLDER):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    client = mlflow.MlflowClient(uri)
    client.create_experiment("automixalign", (tmp_path / "artifacts").as_uri())
    yield uri
    mlflow.set_tracking_uri(None)  # a step sets it for its process


@pytest.fixture(scope="module")
def candidates(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A full model and a LoRA adapter, both moved away from the base."""
    folder = tmp_path_factory.mktemp("candidates")
    torch.manual_seed(1)
    full = load_full_model(base_model)
    with torch.no_grad():
        for parameter in full.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    full.save_pretrained(folder / "full")
    load_tokenizer(base_model).save_pretrained(folder / "full")
    lora = get_peft_model(
        load_full_model(base_model),
        LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    lora.save_pretrained(folder / "lora")
    return {"full": folder / "full", "lora": folder / "lora"}


Registered = Callable[..., dict[str, Any]]


@pytest.fixture
def registered(
    experiment_data: dict[str, Any],
    candidates: dict[str, Path],
    two_tasks: Path,
    base_model: Path,
    tmp_path: Path,
) -> Registered:
    """Register the best of some entries of a leaderboard, with options of the registry."""

    def best_of(*entries: dict[str, Any], **spec: Any) -> dict[str, Any]:
        experiment = parse_experiment(experiment_data | {"registry": {"name": "assistant", **spec}}, "test")
        files.write_json(tmp_path / "board.json", list(entries))
        known = {
            entry["model"]: candidates[entry["model"]] for entry in entries if entry["model"] in candidates
        }
        output = tmp_path / "registration.json"
        settings = RegistrySettings(
            seed=0, registry=RegistrySpec(name="assistant", **spec), experiment=experiment
        )
        result = register(settings, tmp_path / "board.json", known, two_tasks, base_model, output)
        assert files.read_json(output) == result
        return result

    return best_of


def greedy(model: Any, tokenizer: Any) -> str:
    prompt = tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    return str(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))


TRACKING_PAGE = (Path(__file__).parents[2] / "docs" / "tracking.md").read_text(encoding="utf-8")
(CONSUMER,) = re.findall(r"```python\n(.*?)```", TRACKING_PAGE, re.DOTALL)
"""The code that the page shows to users of a registered model."""


@pytest.mark.parametrize("name", ["full", "lora"])
def test_a_fresh_process_gets_the_pipeline_s_model_token_for_token(
    name: str,
    store: str,
    registered: Registered,
    candidates: dict[str, Path],
    base_model: Path,
    tmp_path: Path,
) -> None:
    result = registered(entry("reference", 0.0, "reference"), entry(name, 0.1))
    assert result == {"name": "assistant", "model": name, "version": "1", "champion": True, "reasons": []}
    done = subprocess.run(
        [sys.executable, "-c", CONSUMER],
        env={**os.environ, "MLFLOW_TRACKING_URI": store},
        capture_output=True,
        text=True,
        check=True,
    )
    tokenizer = load_tokenizer(base_model)
    own = greedy(load_model(candidates[name], base_model), tokenizer)
    assert done.stdout.splitlines()[-1] == own
    assert own != greedy(load_full_model(base_model), tokenizer), "the base would answer alike"
    held = mlflow.models.get_model_info("models:/assistant@champion")
    assert {"messages", "max_tokens", "temperature"} <= set(held.signature.inputs.input_names())
    assert held.saved_input_example_info is not None
    pinned = next((tmp_path / "artifacts").rglob("requirements.txt")).read_text().splitlines()
    assert f"transformers=={version('transformers')}" in pinned
    weights = list((tmp_path / "artifacts").rglob("*.safetensors"))
    assert len(weights) == 1, "the weights are stored once"
    assert not list((tmp_path / "artifacts").rglob("*.bin"))


def test_a_server_with_its_artifacts_on_s3_hands_out_the_same_model(
    s3: Any,
    store: str,
    registered: Registered,
    candidates: dict[str, Path],
    base_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a team runs it: the pipeline and the consumer know the server's address and nothing of S3."""
    s3.create_bucket(Bucket="registry")
    with server(tmp_path, free_port(), "s3://registry/models") as uri:
        monkeypatch.setenv(URI, uri)
        assert registered(entry("lora", 0.1))["champion"]
        without_s3 = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
        done = subprocess.run(
            [sys.executable, "-c", CONSUMER], env=without_s3, capture_output=True, text=True, check=True
        )
    own = greedy(load_model(candidates["lora"], base_model), load_tokenizer(base_model))
    assert done.stdout.splitlines()[-1] == own
    keys = [item["Key"] for item in s3.list_objects_v2(Bucket="registry")["Contents"]]
    assert sum(key.endswith(".safetensors") for key in keys) == 1


def test_the_champion_is_served_as_a_chat(
    store: str, registered: Registered, candidates: dict[str, Path], base_model: Path, tmp_path: Path
) -> None:
    """MLflow's own server answers what the model would; as it samples, the temperature is next to 0."""
    registered(entry("full", 0.1))
    port = free_port()
    arguments = ["models", "serve", "-m", "models:/assistant@champion", "--env-manager", "local"]
    with (tmp_path / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *arguments, "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 90
        while True:
            assert process.poll() is None, (tmp_path / "serve.log").read_text()
            assert time.monotonic() < deadline, "the model server did not come up"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2)
                break
            except OSError:
                time.sleep(0.2)
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps({"messages": QUESTION, "max_tokens": 12, "temperature": 1e-3}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310  our own server
            (completion,) = json.loads(answer.read())
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    tokenizer = load_tokenizer(base_model)
    own = greedy(load_full_model(candidates["full"]), tokenizer)
    assert completion["choices"][0]["message"]["content"] == own


def test_the_best_candidate_becomes_a_version_and_the_gate_decides(
    store: str, registered: Registered, candidates: dict[str, Path], base_model: Path
) -> None:
    client = mlflow.MlflowClient(store)
    first = registered(entry("full", 0.2), entry("lora", 0.1))
    assert (first["model"], first["version"], first["champion"]) == ("lora", "1", True)
    again = registered(entry("full", 0.2), entry("lora", 0.1))
    assert again == first, "a step that is retried makes no second version"
    second = registered(entry("full", 0.15), entry("lora", 0.3))
    assert (second["model"], second["version"], second["champion"]) == ("full", "2", False)
    assert second["reasons"] == ["its worst-task excess 0.1500 is above the champion's 0.1000"]
    aliases = client.get_registered_model("assistant").aliases
    assert {name: str(number) for name, number in aliases.items()} == {"candidate": "2", "champion": "1"}
    tags = client.get_model_version("assistant", "2").tags
    assert tags["automixalign.model"] == files.digest(candidates["full"])
    assert tags["automixalign.base_model_digest"] == files.digest(base_model)
    assert tags["automixalign.method"] == "full"
    assert tags["automixalign.worst_excess"] == "0.15"
    assert {"automixalign.data", "automixalign.config", "automixalign.seed"} <= tags.keys()


SAME = {"automixalign.model": "m", "automixalign.data": "d"}


@pytest.mark.parametrize(
    ("spec", "worst", "accuracy", "champion", "reasons"),
    [
        ({}, 0.5, 0.1, None, []),
        ({"max_worst_excess": 0.4}, 0.5, 0.9, None, ["its worst-task excess 0.5000 is above 0.4"]),
        ({"min_accuracy": 0.8}, 0.5, 0.7, None, ["its mean accuracy 0.700 is below 0.8"]),
        ({}, 0.1, 0.9, {"data": "d", "worst_excess": "0.1"}, []),
        ({}, 0.2, 0.9, {"data": "d", "worst_excess": "0.1"}, ["its worst-task excess 0.2000 is above the"]),
        ({"beat_champion": False}, 0.2, 0.9, {"data": "d", "worst_excess": "0.1"}, []),
        ({}, 0.0, 0.9, {"data": "other", "worst_excess": "0.1"}, ["the champion was measured on other data"]),
        ({}, 0.2, 0.9, {"data": "other", "worst_excess": "0.1", "model": "m"}, []),
    ],
)
def test_the_gate(
    spec: dict[str, Any],
    worst: float,
    accuracy: float,
    champion: dict[str, str] | None,
    reasons: list[str],
) -> None:
    tags = {f"automixalign.{key}": value for key, value in (champion or {}).items()}
    found = gate(
        RegistrySpec(name="x", **spec), entry("a", worst, accuracy=accuracy), SAME, tags if champion else None
    )
    assert len(found) == len(reasons)
    assert all(mine.startswith(text) for mine, text in zip(found, reasons, strict=True))


def test_without_a_store_nothing_is_registered(registered: Registered, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (URI, RUN_ID, FOLDER):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI"):
        registered(entry("full", 0.1))
