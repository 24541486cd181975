"""A real run of the whole DAG through kfp's SubprocessRunner, and the content of its run folder."""

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from automixalign.config.experiment import parse_experiment
from automixalign.config.file import read_yaml
from automixalign.models.full_model import write_full_model
from automixalign.report import leaderboard
from automixalign.report.run_folder import WORK
from automixalign.report.runs import FACTS, PAGE
from automixalign.storage import files
from automixalign.storage.files import digest
from automixalign.storage.publication import Manifest, fetch
from pipelines.local.outputs import list_artifacts
from pipelines.local.watching.state import read_state
from pipelines.local.watching.time_left import list_stages
from tests.faults.command_line import ROOT, ama

TASKS = ("arithmetic", "own")
BETA = 0.3


def configuration(base_model: Path, own: Path) -> dict[str, Any]:
    return {
        "name": "test",
        "seed": 5,
        "plugins": ["benchmarks.mixers"],
        "base_model": str(base_model),
        "tasks": [
            {"name": "arithmetic", "source": "synthetic:arithmetic", "limit": 40, "verifier": "exact"},
            {"name": "own", "source": str(own)},
        ],
        "max_length": 64,
        "split": {"validation": 0.1, "test": 0.2},
        "training": {
            "batch_size": 4,
            "micro_batch_size": 2,
            "learning_rate": 0.02,
            "beta": BETA,
            "nll_weight": 0.2,
            "lora": {"rank": 2},
        },
        "budget": {"specialist": {"steps": 6}, "generalist": {"steps": 8}},
        "specialist_losses": {"cross_fit": True},
        "methods": [
            "uniform",
            {
                "method": "ama-s-ablation",
                "name": "ama-s",
                "eta": 0.5,
                "task_clip": True,
                "average_iterates": 0.5,
            },
        ],
        "merges": ["linear"],
        "evaluation": {"max_new_tokens": 4},
    }


def own_rows() -> list[dict[str, Any]]:
    """Plain-text preferences; no prompt is also in the synthetic task."""
    return [
        {"prompt": f"say {word}:", "chosen": f" {word}!", "rejected": f" {word[::-1]}?"}
        for word in (f"word{number}" for number in range(30))
    ]


def write_config(folder: Path, base_model: Path, rows: list[dict[str, Any]], **changes: Any) -> Path:
    """Write the rows and a configuration that reads them."""
    files.write_jsonl(folder / "own.jsonl", rows)
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(configuration(base_model, folder / "own.jsonl") | changes))
    return config


@pytest.fixture(scope="module")
def run_folder(base_model: Path, s3: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    s3.create_bucket(Bucket="pipeline-run")
    folder = tmp_path_factory.mktemp("pipeline")
    release = {"registry": {"name": "test"}, "output": "s3://pipeline-run/models"}
    config = write_config(folder, base_model, own_rows(), **release)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONIOENCODING", "latin-1")  # of a terminal that has no tick
        done = ama("run", "--config", config, "--output", folder / "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n+ register " in done.stdout
    assert "smallest worst-task gap" in done.stdout
    assert str(folder / "run" / "leaderboard.json") in done.stdout
    assert "registered   models:/test/1 (" in done.stdout
    assert "published    s3://pipeline-run/models" in done.stdout
    return folder / "run"


def load(run_folder: Path, name: str) -> Any:
    """The saved model, by transformers and peft alone."""
    folder = run_folder / "models" / name
    if (folder / "adapter_config.json").exists():
        base = AutoModelForCausalLM.from_pretrained(run_folder / "models" / "reference")
        return PeftModel.from_pretrained(base, folder).eval()
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@torch.no_grad()
def log_ratio(model: Any, row: dict[str, Any]) -> float:
    """log pi(chosen) - log pi(rejected), token by token, one sequence at a time."""
    total = []
    for side in ("chosen_ids", "rejected_ids"):
        ids = torch.tensor([row["prompt_ids"] + row[side]])
        logps = model(ids).logits.log_softmax(-1)
        start = len(row["prompt_ids"])
        total.append(sum(logps[0, at - 1, ids[0, at]].item() for at in range(start, ids.shape[1])))
    return total[0] - total[1]


def test_the_leaderboard_can_be_recomputed_from_the_saved_models(run_folder: Path) -> None:
    board = {entry["model"]: entry for entry in json.loads((run_folder / "leaderboard.json").read_text())}
    assert {name: entry["family"] for name, entry in board.items()} == {
        "reference": "reference",
        "specialist-arithmetic": "specialist",
        "specialist-own": "specialist",
        "uniform": "generalist",
        "ama-s": "generalist",
        "linear": "merge",
    }
    losses: dict[tuple[str, str], list[float]] = {}
    reference = load(run_folder, "reference")
    for name, entry in board.items():
        model = load(run_folder, name)
        for task in TASKS:
            rows = pq.read_table(run_folder / "data" / task / "test.parquet").to_pylist()
            margins = [BETA * (log_ratio(model, row) - log_ratio(reference, row)) for row in rows]
            losses[name, task] = [math.log1p(math.exp(-margin)) for margin in margins]
            measured = entry["tasks"][task]
            assert measured["margin"] == pytest.approx(sum(margins) / len(rows), abs=1e-4)
            assert measured["loss"] == pytest.approx(sum(losses[name, task]) / len(rows), abs=1e-4)
            if name != "reference":
                assert measured["accuracy"] == pytest.approx(sum(margin > 0 for margin in margins) / len(rows))
            assert ("pass_rate" in measured) == (task == "arithmetic")
    for name, entry in board.items():
        excesses = []
        for task in TASKS:
            pairs = zip(losses[name, task], losses[f"specialist-{task}", task], strict=True)
            excess = [max(loss - specialist_loss, 0) for loss, specialist_loss in pairs]
            excesses.append(sum(excess) / len(excess))
            assert entry["tasks"][task]["excess"] == pytest.approx(excesses[-1], abs=1e-4)
        assert entry["worst"]["excess"] == pytest.approx(max(excesses), abs=1e-4)
        assert entry["average"]["excess"] == pytest.approx(sum(excesses) / len(excesses), abs=1e-4)
    assert board["reference"]["average"]["loss"] == pytest.approx(math.log(2))
    assert board["specialist-own"]["tasks"]["own"]["loss"] < math.log(2), "training taught nothing"


def test_a_cluster_accepts_the_metadata(run_folder: Path) -> None:
    """KFP's launcher fails a stage if an artifact's metadata contain a null."""
    metadata_by_path = dict(list_artifacts(run_folder.resolve() / WORK))
    assert len(metadata_by_path) >= 30
    for path, metadata in metadata_by_path.items():
        assert not [key for key, value in metadata.items() if value is None], path


def test_specialist_losses_are_cross_fitted_as_configured(run_folder: Path) -> None:
    for task in TASKS:
        manifest = json.loads((run_folder / "specialist_losses" / task / "manifest.json").read_text())
        assert manifest["cross_fit"]
        losses = {
            split: pq.read_table(run_folder / "specialist_losses" / task / f"{split}.parquet").column("loss")
            for split in ("train", "validation", "test")
        }
        held_out = losses["validation"].to_pylist() + losses["test"].to_pylist()
        train = losses["train"].to_pylist()
        assert manifest["gap"] == pytest.approx(sum(held_out) / len(held_out) - sum(train) / len(train))


def test_mlflow_has_the_run_its_stages_and_the_registered_model(run_folder: Path) -> None:
    """In the store of the working directory; no record waits."""
    client = mlflow.MlflowClient(f"sqlite:///{run_folder.parent}/mlflow.db")
    experiment = client.get_experiment_by_name("automixalign")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    parent = runs.pop(run_folder.name)
    stages = {
        event["stage"] + (f" [{event['name']}]" if event["name"] else "")
        for event in map(json.loads, (run_folder / "logs" / "events.jsonl").open())
    }
    board = {entry["model"]: entry for entry in json.loads((run_folder / "leaderboard.json").read_text())}
    registration = json.loads((run_folder / "registration.json").read_text())
    assert runs.keys() == stages | {f"model {registration['model']}"}
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    assert {run.info.status for run in (parent, *runs.values())} == {"FINISHED"}
    assert parent.data.params["training.beta"] == str(BETA)
    chosen = leaderboard.chosen(board.values())
    assert chosen is not None
    assert parent.data.metrics["worst_gap"] == pytest.approx(chosen["worst"]["gap"])
    assert parent.data.params["best_model"] == chosen["model"]
    assert len(parent.data.metrics) <= 5
    description = parent.data.tags["mlflow.note.content"]
    assert leaderboard.choice([chosen]) in description
    assert f"/runs/{parent.info.run_id}/artifacts/report/index.html)" in description
    trained = runs["train_generalist [ama-s]"].data.params
    options = {"eta": "0.5", "task_clip": "True", "beta": str(BETA), "learning_rate": "0.02", "steps": "8"}
    options |= {"seed": "5", "lora.rank": "2", "c": "0.1"}
    assert options.items() <= trained.items()
    assert len(parent.inputs.dataset_inputs) == len(TASKS)
    curve = client.get_metric_history(runs["train_generalist [ama-s]"].info.run_id, "weights/own")
    assert [point.step for point in curve] == list(range(1, 9))
    assert not list((run_folder / ".kfp" / "spool").glob("*.record.json"))
    version = client.get_model_version_by_alias("test", "champion")
    assert registration == {
        "name": "test",
        "model": version.tags["automixalign.method"],
        "version": str(version.version),
        "champion": True,
        "reasons": [],
    }


def test_models_and_report_are_published(run_folder: Path, tmp_path: Path) -> None:
    """A verified download from S3 has the models of the run folder, and needs no path of this machine."""
    manifest = fetch("s3://pipeline-run/models", tmp_path / "fetched")
    assert manifest == Manifest.model_validate_json((run_folder / "publication.json").read_text())
    models = run_folder / "models"
    for name in ("reference", "uniform", "ama-s", "linear"):
        write_full_model(models / name, models / "reference", tmp_path / name)
        if name == "linear":
            (tmp_path / name / "README.md").unlink()  # the run writes the cards at its end
        assert digest(tmp_path / "fetched" / "models" / name) == digest(tmp_path / name)
    board = "leaderboard.json"
    assert (tmp_path / "fetched" / board).read_bytes() == (run_folder / board).read_bytes()
    published, local = (files.read_json(folder / FACTS) for folder in (tmp_path / "fetched", run_folder))
    assert published["leaderboard"] == local["leaderboard"]
    assert published["cards"] == [], "the page links to no card that is not published"


def test_a_finished_run_is_published_again(run_folder: Path, tmp_path: Path) -> None:
    """With the same weights as by the stage, and the report and the cards of the run folder."""
    manifest = Manifest.model_validate_json((run_folder / "publication.json").read_text())
    done = ama("publish", run_folder, "--to", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    assert f"published {tmp_path / 'again'}: " in done.stdout
    again = fetch(str(tmp_path / "again"), tmp_path / "fetched")
    assert manifest.files.keys() <= again.files.keys()
    changed = [name for name, file in again.files.items() if manifest.files.get(name) != file]
    assert sorted(changed) == ["models/linear/README.md", FACTS, PAGE], "adapters are published as full models"
    facts = files.read_json(tmp_path / "fetched" / FACTS)
    assert facts["cards"] == []
    assert facts["stages"]
    (tmp_path / "again" / "thesis.tex").write_text("years")
    refused = ama("publish", run_folder, "--to", tmp_path / "again", "--replace")
    assert refused.returncode == 2
    assert "holds files of no publication: thesis.tex" in refused.stderr


def test_the_data_is_complete_and_no_prompt_leaks(run_folder: Path) -> None:
    for task, count in zip(TASKS, (40, 30), strict=True):
        prompts: dict[str, set[str]] = {}
        total = 0
        for split in ("train", "validation", "test"):
            table = pq.read_table(run_folder / "data" / task / f"{split}.parquet")
            prompts[split] = {str(prompt) for prompt in table.column("prompt").to_pylist()}
            total += len(table)
            for cache, columns in (
                ("reference_logps", {"pair_id", "chosen_logps", "rejected_logps"}),
                ("specialist_losses", {"pair_id", "chosen_logps", "rejected_logps", "loss"}),
            ):
                cached = pq.read_table(run_folder / cache / task / f"{split}.parquet")
                assert set(cached.column_names) == columns
                assert cached.column("pair_id").to_pylist() == table.column("pair_id").to_pylist()
        assert total == count
        assert not prompts["train"] & prompts["test"]
        assert not prompts["train"] & prompts["validation"]


def test_trajectories_and_other_files_have_stable_paths(run_folder: Path) -> None:
    for method in ("uniform", "ama-s"):
        rows = [json.loads(line) for line in (run_folder / "trajectories" / f"{method}.jsonl").open()]
        assert [row["step"] for row in rows] == list(range(1, 9))
        for row in rows:
            assert sum(row["weights"].values()) == pytest.approx(1)
            assert sum(row["pairs"].values()) == 4
    assert rows[-1]["weights"] != {"arithmetic": 0.5, "own": 0.5}
    for path in (
        "config.yaml",
        "leaderboard.md",
        "report/index.html",
        "report/data.json",
        "plots/task_weights.png",
        "logs/kfp.log",
    ):
        assert (run_folder / path).stat().st_size > 0, path
    linked = run_folder / "models" / "uniform" / "adapter_model.safetensors"
    assert linked.stat().st_nlink == 2, "big files are links, not copies"


def test_the_report_knows_what_every_training_cost(run_folder: Path) -> None:
    facts = json.loads((run_folder / "report" / "data.json").read_text())
    steps = {"specialist-arithmetic": 6, "specialist-own": 6, "uniform": 8, "ama-s": 8}
    assert {name: cost["steps"] for name, cost in facts["costs"].items()} == steps
    assert {name: cost["pairs"] for name, cost in facts["costs"].items()} == {
        n: 4 * s for n, s in steps.items()
    }
    assert [task["name"] for task in facts["tasks"]] == list(TASKS)
    assert all(task["specialist"]["cross_fit"] for task in facts["tasks"])
    assert facts["trainings"]["specialist-own"]["steps"] == list(range(1, 7))
    assert {"train_generalist", "compare", "publish"} <= {stage["stage"] for stage in facts["stages"]}
    assert "processors" in facts["costs"]["ama-s"]["machine"]
    again = ama("report", run_folder)
    assert again.returncode == 0, again.stderr
    assert json.loads((run_folder / "report" / "data.json").read_text()) == facts


def test_the_report_links_to_the_card_of_every_model(run_folder: Path) -> None:
    facts = json.loads((run_folder / "report" / "data.json").read_text())
    assert facts["cards"] == [entry["model"] for entry in facts["leaderboard"]]
    for name in facts["cards"]:
        card = (run_folder / "report" / f"../models/{name}/README.md").read_text()
        assert ("# Reference model" if name == "reference" else f"# {name} of test\n") in card


def test_the_report_shows_answers_of_the_tasks_with_a_verifier(run_folder: Path) -> None:
    facts = json.loads((run_folder / "report" / "data.json").read_text())
    arithmetic, own = facts["examples"]
    assert len(arithmetic["prompts"]) == 3
    for prompt in arithmetic["prompts"]:
        models = [answer["model"] for answer in prompt["answers"]]
        assert models == [entry["model"] for entry in facts["leaderboard"]]
    assert own == {"task": "own", "prompts": []}


def test_its_events_are_those_of_the_planned_stages(run_folder: Path) -> None:
    state = read_state(run_folder)
    experiment = parse_experiment(read_yaml(run_folder / "config.yaml"), "config.yaml")
    assert {*state.stages} == {*list_stages(experiment)}
    assert (state.state, state.stages.done) == ("finished", len(list_stages(experiment)))
    assert state.chosen is not None


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_ending_a_run_ends_its_stages_and_says_how_to_go_on(
    sent: signal.Signals, base_model: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, base_model, own_rows())
    given = ["run", "--config", str(config), "--set", "methods.uniform.average_iterates=0.5"]
    if sent is signal.SIGTERM:
        given += ["--output", str(tmp_path / "runs")]
    run = subprocess.Popen(
        [sys.executable, "-c", "from pipelines.cli import main; main()", *given],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )

    def log() -> str:
        return "".join(path.read_text() for path in (tmp_path / "runs").rglob("logs/events.jsonl"))

    deadline = time.monotonic() + 300
    while not re.search(r'"stage": "(?!validate).*"started"', log()):
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    processes = psutil.Process(run.pid).children(recursive=True)
    assert len(processes) >= 4, "the process that runs the DAG, its fork server, a stage, and the MLflow sender"
    run.send_signal(sent)
    errors = run.communicate(timeout=30)[1].splitlines()
    assert run.returncode == 128 + sent
    title, finished, *unfinished, go_on = errors[-(4 if "unfinished" in errors[-2] else 3) :]
    (folder,) = {path.parents[1] for path in (tmp_path / "runs").rglob("logs/events.jsonl")}
    shown = folder.relative_to(tmp_path) if sent is signal.SIGINT else folder
    assert title == "interrupted"
    assert re.fullmatch(rf"  finished     [1-9] of \d+ stages; kept in {re.escape(str(shown))}", finished)
    assert all(line.startswith("  unfinished   ") for line in unfinished)
    output = ["--output", str(shown)] if sent is signal.SIGINT else []
    assert go_on == f"  go on with   {shlex.join(['ama', *given, *output])}"
    assert "Traceback" not in "".join(errors)
    _, alive = psutil.wait_procs(processes, 10)
    assert not alive


@pytest.mark.slow
def test_a_failed_stage_is_named_with_its_message_and_its_log(base_model: Path, tmp_path: Path) -> None:
    first, *others = own_rows()
    too_long = [row | {"prompt": row["prompt"] * 9} for row in others]
    config = write_config(tmp_path, base_model, [first, *too_long])
    failed = ama("run", "--config", config, "--output", tmp_path / "run")
    assert failed.returncode == 1
    first_line, *facts = failed.stderr.splitlines()[-4:]
    message = "task own: 1 usable pairs with 1 prompts leave its train split empty"
    assert first_line.startswith(f"✗ prepare_data failed: {message}")
    log = tmp_path / "run" / "logs" / "prepare_data.log"
    assert facts == [
        f"  log          {log}",
        f"  finished     2 of 19 stages; kept in {tmp_path / 'run'}",
        f"  go on with   ama run --config {config} --output {tmp_path / 'run'}",
    ]
    assert message not in failed.stdout
    assert "Traceback" in log.read_text()
    assert (tmp_path / "run" / "models" / "reference" / "config.json").exists(), "results of finished stages"
    assert not (tmp_path / "run" / "leaderboard.json").exists()


@pytest.mark.parametrize("command", ["sync", "report"])
def test_the_pages_commands_work_on_a_finished_run(command: str, run_folder: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "tracking.md").read_text(encoding="utf-8")
    lines = re.findall(rf"^ama ({command} runs/NAME-DATE-TIME)", page, re.MULTILINE)
    assert lines
    for line in lines:
        done = ama(*line.replace("runs/NAME-DATE-TIME", str(run_folder)).split())
        assert done.returncode == 0, done.stderr
