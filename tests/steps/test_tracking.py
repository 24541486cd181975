"""What steps tell MLflow: against a real SQLite store and a real server that keeps its artifacts on S3."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest
from typer.testing import CliRunner

from automixalign.config.experiment import parse_experiment
from automixalign.steps.step import run_step
from automixalign.steps.tracking.record import Dataset, Record
from automixalign.steps.tracking.send import send_waiting
from automixalign.steps.tracking.spool import FOLDER, FOLLOWED, RUN_ID, URI, Spool, Target
from automixalign.system.errors import ConfigError
from benchmarks.servers.mlflow_server import server
from benchmarks.servers.mlflow_store import sqlite_store
from benchmarks.servers.ports import free_port
from pipelines import cli
from pipelines.local import sending


@pytest.fixture(autouse=True)
def untracked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the user's own settings; a spool folder that the test may look into."""
    for name in (URI, RUN_ID, FOLDER, FOLLOWED):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def filled(stage: str = "train", name: str = "a", of_pipeline: bool = False) -> Record:
    record = Record(stage=stage, name=name, of_pipeline=of_pipeline, ended=time.time())
    record.add_params({"training": {"beta": 0.1}, "methods": ["x", {"eta": 1}]})
    record.add_metrics({"loss": {"help": 0.5, "none": None}, "flag": True, "nan": float("nan")}, step=3)
    return record


def runs(uri: str, name: str = "automixalign") -> dict[str, Any]:
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name(name)
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def store(folder: Path, **changes: Any) -> tuple[Spool, str]:
    spool, uri = Spool(folder / "spool"), sqlite_store(folder / "mlflow.db")
    spool.aim(Target(uri=uri, run_name="pipeline", artifacts=(folder / "art").as_uri(), **changes))
    return spool, uri


def test_a_pipeline_is_a_run_with_a_nested_run_a_step(tmp_path: Path) -> None:
    spool, uri = store(tmp_path)
    trajectory = tmp_path / "model"
    trajectory.write_text("".join(json.dumps({"step": s, "excess": {"a": s / 2}}) + "\n" for s in (1, 2)))
    step = filled()
    step.add_curves(trajectory)
    step.add_artifact(trajectory, "logs/trajectory.jsonl")
    whole = filled("compare", "", of_pipeline=True)
    whole.datasets.append(Dataset(name="help", digest="d1", source="help.jsonl", profile={"pairs": 3}))
    failed = Record(stage="evaluate", status="FAILED")
    for record in (step, whole, failed):
        spool.add(record)
    assert send_waiting(spool) is None
    assert spool.waiting() == []
    found = runs(uri)
    assert set(found) == {"pipeline", "train [a]", "compare", "evaluate"}
    parent, nested = found["pipeline"], found["train [a]"]
    assert nested.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert nested.data.tags["automixalign.stage"] == "train"
    assert nested.data.params == {"training.beta": "0.1", "methods.0": "x", "methods.1.eta": "1"}
    assert nested.data.metrics == {"loss/help": 0.5, "excess/a": 1.0}
    client = mlflow.MlflowClient(uri)
    curve = client.get_metric_history(nested.info.run_id, "excess/a")
    assert [(point.step, point.value) for point in curve] == [(1, 0.5), (2, 1.0)]
    assert [item.path for item in client.list_artifacts(nested.info.run_id, "logs")] == [
        "logs/trajectory.jsonl"
    ]
    assert parent.data.params["training.beta"] == "0.1"
    (data,) = (given.dataset for given in parent.inputs.dataset_inputs)
    assert (data.name, data.digest, json.loads(data.profile)) == ("help", "d1", {"pairs": 3})
    assert (nested.info.status, found["evaluate"].info.status) == ("FINISHED", "FAILED")
    assert parent.info.status == "RUNNING"
    spool.close("FINISHED")
    assert send_waiting(spool) is None
    assert runs(uri)["pipeline"].info.status == "FINISHED"


def test_a_run_handed_in_is_joined_and_nothing_of_it_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = sqlite_store(tmp_path / "mlflow.db")
    client = mlflow.MlflowClient(uri)
    given = client.create_run(client.create_experiment("theirs", (tmp_path / "art").as_uri()), run_name="kfp")
    client.log_param(given.info.run_id, "training.beta", "theirs")
    monkeypatch.setenv(URI, uri)
    monkeypatch.setenv(RUN_ID, given.info.run_id)
    with run_step("validate_config") as running:
        running.record = filled("validate_config", "", of_pipeline=True)
    with run_step("train", "a"):
        pass
    found = runs(uri, "theirs")
    assert set(found) == {"kfp", "validate_config", "train [a]"}
    assert found["kfp"].data.params == {"training.beta": "theirs", "methods.0": "x", "methods.1.eta": "1"}
    assert found["kfp"].info.status == "RUNNING", "whoever made it ends it"
    assert found["train [a]"].data.tags["mlflow.parentRunId"] == given.info.run_id


def test_without_a_uri_nothing_happens(tmp_path: Path) -> None:
    with run_step("train", "a") as running:
        running.record.add_metrics({"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_step_is_recorded_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(URI, f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(ZeroDivisionError), run_step("train", "a"):
        _ = 1 / 0
    assert runs(f"sqlite:///{tmp_path}/mlflow.db")["train [a]"].info.status == "FAILED"


def test_sending_again_after_half_a_record_fills_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store fails between parameters and metrics; the second attempt ends with one run, each point once."""
    spool, uri = store(tmp_path)
    spool.add(filled())
    original = mlflow.MlflowClient.log_batch
    calls: list[Any] = []

    def failing(self: Any, run_id: str, **content: Any) -> Any:
        calls.append(content)
        if len(calls) == 2:
            raise mlflow.exceptions.MlflowException("away for a moment")
        return original(self, run_id, **content)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", failing)
    assert send_waiting(spool) == "MlflowException: away for a moment"
    assert len(spool.waiting()) == 1
    assert send_waiting(spool) is None
    found = runs(uri)
    assert set(found) == {"pipeline", "train [a]"}
    history = mlflow.MlflowClient(uri).get_metric_history(found["train [a]"].info.run_id, "loss/help")
    assert len(history) == 1


def test_a_run_whose_making_nobody_heard_of_is_filled_and_its_twins_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the pipeline's run is lost; MLflow repeats the call for the step's run by itself."""
    spool, uri = store(tmp_path)
    spool.add(filled())
    original = mlflow.MlflowClient.create_run
    calls: list[Any] = []

    def unheard(self: Any, *args: Any, **options: Any) -> Any:
        calls.append(original(self, *args, **options))
        if len(calls) == 1:
            raise mlflow.exceptions.MlflowException("connection lost")
        return original(self, *args, **options)

    monkeypatch.setattr(mlflow.MlflowClient, "create_run", unheard)
    assert send_waiting(spool) == "MlflowException: connection lost"
    spool.close("FINISHED")
    assert send_waiting(spool) is None
    assert len(calls) == 2
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("automixalign")
    names = sorted(run.info.run_name for run in client.search_runs([experiment.experiment_id]))
    assert names == ["pipeline", "train [a]"]


def test_a_record_that_is_refused_holds_up_no_other(tmp_path: Path) -> None:
    spool, uri = store(tmp_path)
    refused = filled(name="refused")
    refused.params["../x"] = "MLflow takes no such name"
    for record in (refused, filled(name="b")):
        spool.add(record)
    left = send_waiting(spool)
    assert left is not None
    assert "../x" in left
    assert len(spool.waiting()) == 1
    assert runs(uri)["train [b]"].info.status == "FINISHED"


def test_what_is_said_of_the_whole_pipeline_is_said_once(tmp_path: Path) -> None:
    """A run that is started again checks its configuration again; MLflow knows it already."""
    spool, uri = store(tmp_path)
    for _ in range(2):
        spool.add(filled("validate_config", "", of_pipeline=True))
        spool.add(filled())
    changed = filled("validate_config", "", of_pipeline=True)
    changed.params["seed"] = "1"
    spool.add(changed)
    assert len(spool.waiting()) == 4
    again = Spool(spool.folder)
    again.reopen(Target(uri=uri, experiment="another"))
    again.add(filled("validate_config", "", of_pipeline=True))
    assert len(again.waiting()) == 5, "another place has not been told"


def test_a_run_of_which_all_was_told_starts_no_sender_until_there_is_more(
    experiment_data: dict[str, Any], tmp_path: Path
) -> None:
    experiment, folder, log = parse_experiment(experiment_data, "test"), tmp_path / "run", tmp_path / "log"
    record = filled("validate_config", "", of_pipeline=True)
    first = sending.Sender(experiment, folder)
    first.start(log)
    first.spool.add(record)
    first.close("FINISHED")
    assert first.wait() is None
    log.unlink()
    again = sending.Sender(experiment, folder)
    again.start(log)
    again.spool.add(record)
    again.close("FINISHED")
    assert again.wait() is None
    assert not log.exists(), "it was started"
    further = sending.Sender(experiment, folder)
    further.start(log)
    assert not log.exists()
    further.spool.add(filled())
    further.look()
    further.close("FINISHED")
    assert further.wait() is None
    found = runs(f"sqlite:///{folder / sending.STORE}")
    assert set(found) == {"run", "validate_config", "train [a]"}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    failed = sending.Sender(experiment, folder)
    failed.start(log)
    failed.close("FAILED")
    assert failed.wait() is None
    assert runs(f"sqlite:///{folder / sending.STORE}")["run"].info.status == "FAILED"


def test_nothing_is_told_of_what_is_empty() -> None:
    record = Record(stage="x")
    record.add_params({})
    record.add_metrics({})
    assert (record.params, record.metrics) == ({}, [])


def test_an_artifact_that_is_gone_holds_up_no_other_record(tmp_path: Path) -> None:
    spool, uri = store(tmp_path)
    lost = filled(name="lost")
    lost.add_artifact(tmp_path / "nowhere", "x")
    for record in (lost, filled(name="b")):
        spool.add(record)
    left = send_waiting(spool)
    assert left is not None
    assert "nowhere is gone" in left
    assert len(spool.waiting()) == 1
    assert runs(uri)["train [b]"].info.status == "FINISHED"


def test_a_server_that_is_away_loses_nothing(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step goes on without it, the next one sends both once it is there, the artifact lies on S3."""
    s3.create_bucket(Bucket="mlflow")
    port = free_port()
    monkeypatch.setenv(URI, f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    kept = tmp_path / "file"
    kept.write_text("kept")
    with run_step("train", "a") as running:
        running.record.add_metrics({"loss": 0.25})
        running.record.add_artifact(kept, "kept.txt")
    warning = capsys.readouterr().err
    assert "MLflow did not take the step's record" in warning
    assert "automixalign-spool-" in warning
    with server(tmp_path, port, "s3://mlflow/artifacts") as uri:
        with run_step("evaluate", "a"):
            pass
        found = runs(uri)
        assert found["train [a]"].data.metrics == {"loss": 0.25}
        assert found["evaluate [a]"].info.status == "FINISHED"
        keys = [item["Key"] for item in s3.list_objects_v2(Bucket="mlflow")["Contents"]]
        (key,) = (key for key in keys if key.endswith("/kept.txt"))
        assert s3.get_object(Bucket="mlflow", Key=key)["Body"].read() == b"kept"


def test_ama_sync_sends_what_a_run_could_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    spool = Spool(sending.spool_folder(folder))
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    spool.aim(Target(uri=uri, run_name="run", artifacts=(tmp_path / "art").as_uri()))
    for name in ("a", "b"):
        spool.add(filled(name=name))
    spool.close("FINISHED")
    found = CliRunner().invoke(cli.app, ["sync", str(folder)])
    assert found.exit_code == 0
    assert found.output.endswith("sent 2 of 2 steps\n")
    assert {name: run.info.status for name, run in runs(uri).items()} == {
        "run": "FINISHED",
        "train [a]": "FINISHED",
        "train [b]": "FINISHED",
    }
    with pytest.raises(ConfigError, match="is no run folder"):
        CliRunner().invoke(cli.app, ["sync", str(tmp_path)], catch_exceptions=False)


def test_credentials_are_kept_nowhere(
    experiment_data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment_data["tracking"] = {"uri": "https://user:secret@mlflow.example"}
    with pytest.raises(ConfigError, match=r"tracking: 'uri' holds a user or password"):
        parse_experiment(experiment_data, "test")
    del experiment_data["tracking"]
    experiment = parse_experiment(experiment_data, "test")
    monkeypatch.setenv(URI, "https://user:secret@mlflow.example")
    with pytest.raises(ConfigError, match=r"MLFLOW_TRACKING_URI holds a user or password") as refusal:
        sending.Sender(experiment, tmp_path / "run")
    assert "secret" not in str(refusal.value)


_OPEN = """
import sys, time
import mlflow
from pathlib import Path
from automixalign.steps.tracking.send import client
from automixalign.steps.tracking.spool import Target
store, folder, name = sys.argv[1:]
Path(folder, name).touch()
while len(list(Path(folder).iterdir())) < 3:
    time.sleep(0.001)
client(Target(uri=store)).search_registered_models(max_results=1)
"""


def test_processes_that_open_a_new_store_at_once_do_not_collide(tmp_path: Path) -> None:
    store, waiting = f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "waiting"
    waiting.mkdir()
    openers = [
        subprocess.Popen(
            [sys.executable, "-c", _OPEN, store, str(waiting), name], stderr=subprocess.PIPE, text=True
        )
        for name in "abc"
    ]
    said = [opener.communicate()[1] for opener in openers]
    assert [opener.returncode for opener in openers] == [0, 0, 0], said
