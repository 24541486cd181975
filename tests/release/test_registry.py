"""The registry: the gate, the content of a version, and that a user gets exactly the pipeline's model."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from automixalign.config.evaluation import EvaluationSpec
from automixalign.config.experiment import RegistrySettings, parse_experiment
from automixalign.config.release import RegistrySpec
from automixalign.models.load import load_full_model, load_model, load_tokenizer
from automixalign.release.register import gate, register
from automixalign.steps.tracking.spool import FOLDER, RUN_ID, URI
from automixalign.storage import files
from automixalign.system.errors import ConfigError
from benchmarks import tiny
from benchmarks.servers.mlflow_server import running, server
from benchmarks.servers.mlflow_store import sqlite_store
from benchmarks.servers.ports import free_port

Paths = dict[str, Path]
Data = dict[str, Any]
QUESTION = [{"role": "user", "content": "sort cabd"}]


def entry(
    name: str, worst: float, family: str = "generalist", accuracy: float = 0.9, excess: float = 0.3
) -> Data:
    """A model with this worst-task gap on the validation split; the test split ranks the models otherwise."""

    def views(gap: float, accuracy: float) -> Data:
        values = {"gap": gap, "excess": excess, "accuracy": accuracy, "loss": 0.5}
        return {"worst": values, "average": values, "tasks": dict.fromkeys(tiny.TASKS, values)}

    return {"model": name, "family": family, **views(-worst, 0.55), "validation": views(worst, accuracy)}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URI of an SQLite store, also in the environment."""
    uri = sqlite_store(tmp_path / "mlflow.db")
    monkeypatch.setenv(URI, uri)
    for name in (RUN_ID, FOLDER):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mlflow.MlflowClient(uri).create_experiment("automixalign", (tmp_path / "artifacts").as_uri())
    yield uri
    mlflow.set_tracking_uri(None)  # `register` sets it for the process


@pytest.fixture(scope="module")
def candidates(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A full model and a LoRA adapter that differ from the base model."""
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


Register = Callable[..., Data]


@pytest.fixture
def register_best(
    experiment_data: Data, candidates: Paths, two_tasks: Path, base_model: Path, tmp_path: Path
) -> Register:
    """Registers the best of some entries of a leaderboard."""
    tasks = [{"name": task, "source": f"synthetic:{task}", "limit": 30} for task in tiny.TASKS]

    def register_best(*entries: Data, base_model: Path = base_model) -> Data:
        experiment = parse_experiment(experiment_data | {"tasks": tasks}, "test")
        settings = RegistrySettings(seed=0, registry=RegistrySpec(name="assistant"), experiment=experiment)
        board, output = tmp_path / "board.json", tmp_path / "registration.json"
        files.write_json(board, list(entries))
        models = {name: candidates[name] for entry in entries if (name := entry["model"]) in candidates}
        costs = {name: {"steps": 1234} for name in models}
        result = register(
            settings, board, models, data=two_tasks, base_model=base_model, output=output, costs=costs
        )
        assert files.read_json(output) == result
        return result

    return register_best


def greedy(model: Any, base_model: Path, tokens: int = 12) -> str:
    """The model's answer to `QUESTION`."""
    tokenizer = load_tokenizer(base_model)
    prompt = tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=tokens, do_sample=False)
    return str(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))


def ask_champion(environment: dict[str, str]) -> str:
    """The answer of the champion in a new process that runs the code of the documentation."""
    command = [sys.executable, "-c", CONSUMER]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


SERVING_PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
(CONSUMER,) = re.findall(r"```python\n(.*?)```", SERVING_PAGE, re.DOTALL)
"""The code on that page for users of a registered model."""


def test_a_new_process_gets_the_model_token_for_token(
    store: str, register_best: Register, candidates: Paths, base_model: Path, tmp_path: Path
) -> None:
    """Of an adapter; `test_the_champion_is_served_as_a_chat` has a full model."""
    result = register_best(entry("reference", 0.0, "reference"), entry("lora", 0.1))
    assert result == {"name": "assistant", "model": "lora", "version": "1", "champion": True, "reasons": []}
    expected = greedy(load_model(candidates["lora"], base_model), base_model)
    assert ask_champion({**os.environ, URI: store}) == expected
    assert expected != greedy(load_full_model(base_model), base_model), "the test needs different answers"
    info = mlflow.models.get_model_info("models:/assistant@champion")
    assert {"messages", "max_tokens", "temperature"} <= set(info.signature.inputs.input_names())
    assert info.saved_input_example_info is not None
    pinned = next((tmp_path / "artifacts").rglob("requirements.txt")).read_text().splitlines()
    assert f"transformers=={version('transformers')}" in pinned
    assert len(list((tmp_path / "artifacts").rglob("*.safetensors"))) == 1, "the weights are stored once"
    assert not list((tmp_path / "artifacts").rglob("*.bin"))


@pytest.mark.slow
def test_a_server_with_artifacts_on_s3_serves_the_same_model(
    s3: Any,
    store: str,
    register_best: Register,
    candidates: Paths,
    base_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pipeline and the user know only the address of the server, not of S3."""
    s3.create_bucket(Bucket="registry")
    with server(tmp_path, free_port(), "s3://registry/models") as uri:
        monkeypatch.setenv(URI, uri)
        assert register_best(entry("lora", 0.1))["champion"]
        without_s3 = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
        answer = ask_champion(without_s3)
    assert answer == greedy(load_model(candidates["lora"], base_model), base_model)
    keys = [item["Key"] for item in s3.list_objects_v2(Bucket="registry")["Contents"]]
    assert sum(key.endswith(".safetensors") for key in keys) == 1


def test_the_champion_is_served_as_a_chat(
    store: str, register_best: Register, candidates: Paths, base_model: Path, tmp_path: Path
) -> None:
    """MLflow's server answers as the evaluation does, also a request that sets nothing, and tells no path."""
    register_best(entry("full", 0.1))
    command = ["models", "serve", "-m", "models:/assistant@champion", "--env-manager", "local"]
    completions = []
    with running(command, free_port(), tmp_path / "serve.log", "ping") as uri:
        for options in ({}, {"max_tokens": 12}, {"max_tokens": 12, "temperature": 0.0}):
            body = json.dumps({"messages": QUESTION, **options}).encode()
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(f"{uri}/invocations", body, headers)  # noqa: S310  our own server
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310  our own server
                completions += json.loads(answer.read())
    policy = load_full_model(candidates["full"])
    texts = [completion["choices"][0]["message"]["content"] for completion in completions]
    assert texts == [greedy(policy, base_model, tokens) for tokens in (EvaluationSpec().max_new_tokens, 12, 12)]
    assert completions[0]["model"] == "models:/assistant"
    assert str(tmp_path) not in json.dumps(completions)


def test_the_best_candidate_becomes_a_version_and_the_gate_decides(
    store: str, register_best: Register, candidates: Paths, base_model: Path
) -> None:
    client = mlflow.MlflowClient(store)
    first = register_best(entry("full", 0.2), entry("lora", 0.1))
    assert (first["model"], first["version"], first["champion"]) == ("lora", "1", True)
    again = register_best(entry("full", 0.2), entry("lora", 0.1))
    assert again == first, "a retried stage creates no second version"
    second = register_best(entry("full", 0.15), entry("lora", 0.3))
    assert (second["model"], second["version"], second["champion"]) == ("full", "2", False)
    assert second["reasons"] == ["its worst-task gap 0.1500 is above the champion's 0.1000"]
    aliases = client.get_registered_model("assistant").aliases
    assert {name: int(number) for name, number in aliases.items()} == {"candidate": 2, "champion": 1}
    tags = client.get_model_version("assistant", "2").tags
    assert tags["automixalign.model"] == files.digest(candidates["full"])
    assert tags["automixalign.base_model_digest"] == files.digest(base_model)
    assert tags["automixalign.method"] == "full"
    assert tags["automixalign.validation_worst_gap"] == "0.15"
    assert tags["automixalign.test_worst_gap"] == "-0.15"
    assert {"automixalign.data", "automixalign.config", "automixalign.seed"} <= tags.keys()


TAGS = {"automixalign.model": "m", "automixalign.data": "d"}


@pytest.mark.parametrize(
    ("spec", "worst", "accuracy", "champion", "reasons"),
    [
        ({}, 0.5, 0.1, None, []),
        ({"max_worst_gap": -0.1}, 0.0, 0.9, None, ["its worst-task gap 0.0000 is above -0.1"]),
        ({"max_worst_excess": 0.2}, 0.1, 0.9, None, ["its worst-task excess 0.3000 is above 0.2"]),
        ({"min_accuracy": 0.8}, 0.5, 0.7, None, ["its mean accuracy 0.700 is below 0.8"]),
        ({}, 0.1, 0.9, {"data": "d", "validation_worst_gap": "0.1"}, []),
        (
            {},
            0.2,
            0.9,
            {"data": "d", "validation_worst_gap": "0.1"},
            ["its worst-task gap 0.2000 is above the"],
        ),
        ({}, 0.2, 0.9, {"data": "d", "worst_excess": "0.1"}, ["the champion has no worst-task gap of a valid"]),
        ({"beat_champion": False}, 0.2, 0.9, {"data": "d", "validation_worst_gap": "0.1"}, []),
        ({}, 0.0, 0.9, {"data": "other"}, ["the champion was measured on other data"]),
        ({}, 0.2, 0.9, {"data": "other", "model": "m"}, []),
    ],
)
def test_the_gate(
    spec: Data, worst: float, accuracy: float, champion: dict[str, str] | None, reasons: list[str]
) -> None:
    tags = {f"automixalign.{key}": value for key, value in (champion or {}).items()}
    model = entry("a", worst, accuracy=accuracy)
    blockers = gate(RegistrySpec(name="x", **spec), model, TAGS, tags if champion else None)
    assert len(blockers) == len(reasons)
    assert all(reason.startswith(start) for reason, start in zip(blockers, reasons, strict=True))


def test_a_version_says_what_it_is_and_where_it_came_from(
    store: str, experiment_data: Data, base_model: Path, register_best: Register, tmp_path: Path
) -> None:
    experiment_data["base_model"] = str(base_model)
    licensed = shutil.copytree(base_model, tmp_path / "licensed")
    (licensed / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    register_best(entry("full", 0.1), base_model=licensed)
    version = mlflow.MlflowClient(store).get_model_version_by_alias("assistant", "champion")
    start = f"`full`, a generalist of a run, made from the base model `{base_model.name}`"
    assert version.description.startswith(start), "without a path of this machine"
    assert "Licence of the base model: `apache-2.0`." in version.description
    assert version.tags["automixalign.base_model_licence"] == "apache-2.0"
    folder = Path(mlflow.artifacts.download_artifacts("models:/assistant@champion"))
    card = (folder / "model_card.md").read_text()
    assert "# full" in card
    assert "| `steps` | 1234 |" in card
    assert (
        "| validation | 0.1000 | 0.3000 | 0.900 |\n| test | -0.1000 | 0.3000 | 0.550 |" in version.description
    )
    assert mlflow.MlflowClient(store).get_run(version.run_id).info.run_name == "model full"


def test_weights_in_bf16_compute_as_in_the_evaluation(
    store: str, register_best: Register, candidates: Paths, base_model: Path, tmp_path: Path
) -> None:
    load_full_model(candidates["full"]).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    load_tokenizer(base_model).save_pretrained(tmp_path / "half")
    candidates["half"] = tmp_path / "half"
    register_best(entry("half", 0.1))
    model = mlflow.transformers.load_model("models:/assistant@champion", return_type="components")["model"]
    assert model.dtype == torch.float32
    assert greedy(model, base_model) == greedy(load_full_model(tmp_path / "half"), base_model)
    (weights,) = (tmp_path / "artifacts").rglob("*.safetensors")
    assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.bfloat16}


def test_nothing_is_registered_without_store(register_best: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (URI, RUN_ID, FOLDER):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI"):
        register_best(entry("full", 0.1))
