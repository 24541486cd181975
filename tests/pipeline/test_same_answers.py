"""One prompt has one answer: in the evaluation, `ama generate`, `ama chat` and the registered model."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from automixalign.config.experiment import RegistrySettings
from automixalign.config.release import RegistrySpec
from automixalign.data.store import TEST, read_split
from automixalign.release.register import register
from automixalign.steps.tracking.spool import FOLDER, RUN_ID, URI
from automixalign.storage import files
from benchmarks.servers.mlflow_store import sqlite_store
from tests.inference.small_run import ADAPTER, write_run
from tests.pipeline.conftest import Ama

CONSUMER = """
import json, sys
import mlflow

questions, tokens = json.load(sys.stdin)
assert "automixalign" not in sys.modules
server = mlflow.pyfunc.load_model("models:/assistant@champion")
parts = mlflow.transformers.load_model("models:/assistant@champion", return_type="components")
model, tokenizer = parts["model"], parts["tokenizer"]
answers = []
for question in questions:
    messages = [{"role": "user", "content": question}]
    served = server.predict({"messages": messages})[0]["choices"][0]["message"]["content"]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    ids = model.generate(**prompt, max_new_tokens=tokens, do_sample=False)
    loaded = tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    answers.append([served, loaded])
print(json.dumps(answers))
"""
"""MLflow's server and transformers, without this project."""


@pytest.mark.slow
def test_everything_gives_the_same_answer(
    ama: Ama, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base model opens a thought, ends its turns with another token, and has a repetition penalty."""
    run = tmp_path / "run"
    experiment = write_run(run)
    pairs = {row["pair_id"]: row for row in read_split(run / "data", "arithmetic", TEST).to_pylist()}
    rows = files.read_jsonl(run / "evaluations" / ADAPTER / "generations.jsonl")
    evaluated = {pairs[row["pair_id"]]["prompt"][0]["content"]: row["output"] for row in rows}
    questions, answers = list(evaluated), list(evaluated.values())
    assert len({*answers}) > 1 and min(map(len, answers)) < experiment.evaluation.max_new_tokens

    (tmp_path / "questions.txt").write_text("\n".join(questions))
    generated = ama("generate", run, ADAPTER, "--input", "questions.txt").out.splitlines()
    assert [json.loads(line)["output"] for line in generated] == answers

    monkeypatch.setattr("sys.stdin", io.StringIO("\n/reset\n".join(questions)))
    assert ama("chat", run, ADAPTER).out == "".join(f"{answer}\n" for answer in answers)

    uri = sqlite_store(tmp_path / "mlflow.db")
    monkeypatch.setenv(URI, uri)
    for name in (RUN_ID, FOLDER):
        monkeypatch.delenv(name, raising=False)
    mlflow.MlflowClient(uri).create_experiment("automixalign", (tmp_path / "artifacts").as_uri())
    values = {"gap": 0.1, "excess": 0.1, "accuracy": 0.9}
    views = {"worst": values, "average": values, "tasks": {"arithmetic": values}}
    files.write_json(
        tmp_path / "board.json", [{"model": ADAPTER, "family": "generalist", **views, "validation": views}]
    )
    register(
        RegistrySettings(seed=0, registry=RegistrySpec(name="assistant"), experiment=experiment),
        tmp_path / "board.json",
        {ADAPTER: run / "models" / ADAPTER},
        data=run / "data",
        base_model=run / "models" / "reference",
        output=tmp_path / "registration.json",
    )
    mlflow.set_tracking_uri(None)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {URI: uri}
    done = subprocess.run(
        [sys.executable, "-c", CONSUMER],
        input=json.dumps([questions, experiment.evaluation.max_new_tokens]),
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    # MLflow's server removes blanks at the start.
    assert json.loads(done.stdout.splitlines()[-1]) == [[answer.lstrip(), answer] for answer in answers]
