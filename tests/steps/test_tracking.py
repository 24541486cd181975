"""What stages report to MLflow, with a real SQLite store and a real server that stores its artifacts on S3."""

import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from typer.testing import CliRunner

from automixalign.config.experiment import parse_experiment
from automixalign.steps.step import run_step
from automixalign.steps.tracking.record import Dataset, Record
from automixalign.steps.tracking.send import client, send_waiting
from automixalign.steps.tracking.spool import FOLDER, FOLLOWED, RUN_ID, URI, Spool, Target
from automixalign.steps.tracking.store import default_store
from automixalign.storage import files
from automixalign.system.errors import ConfigError
from benchmarks.servers.mlflow_server import server
from benchmarks.servers.mlflow_store import sqlite_store
from benchmarks.servers.ports import free_port
from pipelines import cli
from pipelines.local.mlflow_sender import LINK, MlflowSender, spool_folder


@pytest.fixture(autouse=True)
def _no_tracking_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (URI, RUN_ID, FOLDER, FOLLOWED):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return sqlite_store(tmp_path / "mlflow.db")


@pytest.fixture
def spool(tmp_path: Path, uri: str) -> Spool:
    spool = Spool(tmp_path / "spool")
    spool.aim(Target(uri=uri, run_name="pipeline", artifacts=(tmp_path / "art").as_uri()))
    return spool


def make_record(stage: str = "train", name: str = "a", of_pipeline: bool = False) -> Record:
    record = Record(stage=stage, name=name, of_pipeline=of_pipeline, ended=time.time())
    record.add_params({"training": {"beta": 0.1}, "methods": ["x", {"eta": 1}]})
    record.add_metrics({"loss": {"help": 0.5, "none": None}, "flag": True, "nan": float("nan")}, step=3)
    return record


def runs(uri: str, name: str = "automixalign") -> dict[str, Any]:
    """The runs of an experiment by name; no name may occur twice."""
    client = mlflow.MlflowClient(uri)
    matches = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    by_name = {run.info.run_name: run for run in matches}
    assert len(by_name) == len(matches)
    return by_name


def statuses(uri: str) -> dict[str, str]:
    return {name: run.info.status for name, run in runs(uri).items()}


def test_a_pipeline_is_a_run_with_a_nested_run_for_each_stage(spool: Spool, uri: str, tmp_path: Path) -> None:
    trajectory = tmp_path / "model"
    trajectory.write_text("".join(json.dumps({"step": s, "excess": {"a": s / 2}}) + "\n" for s in (1, 2)))
    stage = make_record()
    stage.add_curves(trajectory)
    stage.add_artifact(trajectory, "logs/trajectory.jsonl")
    pipeline = make_record("compare", "", of_pipeline=True)
    pipeline.datasets.append(Dataset(name="help", digest="d1", source="help.jsonl", profile={"pairs": 3}))
    for record in (stage, pipeline, Record(stage="evaluate", status="FAILED")):
        spool.add(record)
    assert send_waiting(spool) is None
    assert spool.waiting() == []
    finished = {"train [a]": "FINISHED", "compare": "FINISHED", "evaluate": "FAILED"}
    assert statuses(uri) == {"pipeline": "RUNNING", **finished}
    parent, nested = (runs(uri)[name] for name in ("pipeline", "train [a]"))
    assert nested.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert nested.data.tags["automixalign.stage"] == "train"
    assert nested.data.params == {"training.beta": "0.1", "methods.0": "x", "methods.1.eta": "1"}
    assert nested.data.metrics == {"loss/help": 0.5, "excess/a": 1.0}
    client = mlflow.MlflowClient(uri)
    curve = client.get_metric_history(nested.info.run_id, "excess/a")
    assert [(point.step, point.value) for point in curve] == [(1, 0.5), (2, 1.0)]
    (artifact,) = client.list_artifacts(nested.info.run_id, "logs")
    assert artifact.path == "logs/trajectory.jsonl"
    assert parent.data.params["training.beta"] == "0.1"
    (data,) = (item.dataset for item in parent.inputs.dataset_inputs)
    assert (data.name, data.digest, json.loads(data.profile)) == ("help", "d1", {"pairs": 3})
    spool.close("FINISHED")
    assert send_waiting(spool) is None
    assert statuses(uri) == {"pipeline": "FINISHED", **finished}


def test_the_run_of_the_environment_gets_nested_runs_and_keeps_its_values(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = mlflow.MlflowClient(uri)
    kfp_run = client.create_run(client.create_experiment("theirs", (tmp_path / "art").as_uri()), run_name="kfp")
    client.log_param(kfp_run.info.run_id, "training.beta", "theirs")
    monkeypatch.setenv(URI, uri)
    monkeypatch.setenv(RUN_ID, kfp_run.info.run_id)
    with run_step("validate_config") as step:
        step.record = make_record("validate_config", "", of_pipeline=True)
    with run_step("train", "a"):
        pass
    logged = runs(uri, "theirs")
    assert set(logged) == {"kfp", "validate_config", "train [a]"}
    assert logged["kfp"].data.params == {"training.beta": "theirs", "methods.0": "x", "methods.1.eta": "1"}
    assert logged["kfp"].info.status == "RUNNING", "its creator ends it"
    assert logged["train [a]"].data.tags["mlflow.parentRunId"] == kfp_run.info.run_id


def test_without_a_uri_nothing_is_written(tmp_path: Path) -> None:
    with run_step("train", "a") as step:
        step.record.add_metrics({"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_stage_gets_the_status_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(URI, f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(ZeroDivisionError), run_step("train", "a"):
        _ = 1 / 0
    assert statuses(f"sqlite:///{tmp_path}/mlflow.db") == {"train [a]": "FAILED"}


def test_the_next_attempt_completes_a_run(spool: Spool, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store fails between parameters and metrics; at the end there is one run with each point once."""
    spool.add(make_record())
    original, calls = mlflow.MlflowClient.log_batch, list[Any]()

    def failing(self: Any, run_id: str, **content: Any) -> Any:
        calls.append(content)
        if len(calls) == 2:
            raise MlflowException("away for a moment")
        return original(self, run_id, **content)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", failing)
    assert send_waiting(spool) == "MlflowException: away for a moment"
    assert len(spool.waiting()) == 1
    assert send_waiting(spool) is None
    assert set(runs(uri)) == {"pipeline", "train [a]"}
    run_id = runs(uri)["train [a]"].info.run_id
    assert len(mlflow.MlflowClient(uri).get_metric_history(run_id, "loss/help")) == 1


def test_lost_responses_leave_each_run_once(spool: Spool, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The response for the pipeline's run is lost; MLflow itself repeats the call for the stage's run."""
    spool.add(make_record())
    original, calls = mlflow.MlflowClient.create_run, list[Any]()

    def losing(self: Any, *args: Any, **options: Any) -> Any:
        calls.append(original(self, *args, **options))
        if len(calls) == 1:
            raise MlflowException("connection lost")
        return original(self, *args, **options)

    monkeypatch.setattr(mlflow.MlflowClient, "create_run", losing)
    assert send_waiting(spool) == "MlflowException: connection lost"
    spool.close("FINISHED")
    assert send_waiting(spool) is None
    assert len(calls) == 2
    assert set(runs(uri)) == {"pipeline", "train [a]"}


def _with_refused_name(record: Record) -> None:
    record.params["../x"] = "MLflow takes no such name"


def _with_lost_artifact(record: Record) -> None:
    record.add_artifact(Path("nowhere"), "x")


@pytest.mark.parametrize(
    ("damage", "reason"), [(_with_refused_name, "../x"), (_with_lost_artifact, "nowhere is gone")]
)
def test_a_record_that_cannot_be_sent_does_not_block_the_next(
    damage: Callable[[Record], None], reason: str, spool: Spool, uri: str
) -> None:
    record = make_record(name="damaged")
    damage(record)
    spool.add(record)
    spool.add(make_record(name="b"))
    assert reason in (send_waiting(spool) or "")
    assert len(spool.waiting()) == 1
    assert statuses(uri)["train [b]"] == "FINISHED"


def test_a_record_of_the_pipeline_is_added_once_for_each_target(spool: Spool, uri: str) -> None:
    """A resumed run checks its configuration again; MLflow has that record already."""

    def add_pipeline_record(**params: str) -> None:
        record = make_record("validate_config", "", of_pipeline=True)
        record.params |= params
        spool.add(record)

    for _ in range(2):
        add_pipeline_record()
        spool.add(make_record())
    add_pipeline_record(seed="1")
    assert len(spool.waiting()) == 4
    spool.reopen(Target(uri=uri, experiment="another"))
    add_pipeline_record()
    assert len(spool.waiting()) == 5


def test_a_local_run_starts_its_sender_only_with_records(
    experiment_data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is that of the working directory, whatever its name; the run folder has a link to the run."""
    working = tmp_path / "a b%20c?d#e"
    working.mkdir()
    monkeypatch.chdir(working)
    experiment, folder, log = parse_experiment(experiment_data, "test"), working / "run", tmp_path / "log"
    uri = default_store()

    def run(*records: Record, status: str = "FINISHED") -> None:
        log.unlink(missing_ok=True)
        sender = MlflowSender(experiment, folder, log)
        sender.start_if_needed()
        for record in records:
            sender.spool.add(record)
            sender.start_if_needed()
        sender.close(status)
        assert sender.wait() is None

    pipeline = make_record("validate_config", "", of_pipeline=True)
    run(pipeline)
    assert log.exists()
    run(pipeline)
    assert not log.exists()
    run(make_record())
    assert log.exists()
    assert {file.name for file in working.iterdir()} == {"mlflow.db", "run"}
    assert {file.name for file in tmp_path.iterdir()} == {working.name, "log"}
    assert statuses(uri) == dict.fromkeys(("run", "validate_config", "train [a]"), "FINISHED")
    link = files.read_json(folder / LINK)
    assert runs(uri)["run"].info.run_id == link["run_id"]
    assert runs(uri)["run"].info.artifact_uri.startswith((working / "mlartifacts").as_uri())
    run(status="FAILED")
    assert statuses(uri)["run"] == "FAILED"


def test_empty_mappings_add_nothing() -> None:
    record = Record(stage="x")
    record.add_params({})
    record.add_metrics({})
    assert (record.params, record.metrics) == ({}, [])


@pytest.mark.slow
def test_a_server_that_is_down_loses_nothing(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stage succeeds without the server; the next one sends both records, and the artifact is on S3."""
    s3.create_bucket(Bucket="mlflow")
    port = free_port()
    monkeypatch.setenv(URI, f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    (tmp_path / "file").write_text("content")
    with run_step("train", "a") as step:
        step.record.add_metrics({"loss": 0.25})
        step.record.add_artifact(tmp_path / "file", "artifact.txt")
    warning = capsys.readouterr().err
    assert "warning: MLflow did not take the stage's record" in warning
    assert "automixalign-spool-" in warning
    with server(tmp_path, port, "s3://mlflow/artifacts") as uri:
        with run_step("evaluate", "a"):
            pass
        assert statuses(uri) == {"train [a]": "FINISHED", "evaluate [a]": "FINISHED"}
        assert runs(uri)["train [a]"].data.metrics == {"loss": 0.25}
        keys = [item["Key"] for item in s3.list_objects_v2(Bucket="mlflow")["Contents"]]
        (key,) = (key for key in keys if key.endswith("/artifact.txt"))
        assert s3.get_object(Bucket="mlflow", Key=key)["Body"].read() == b"content"


def test_ama_sync_sends_what_a_run_could_not(uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    spool = Spool(spool_folder(folder))
    spool.aim(Target(uri=uri, run_name="run", artifacts=(tmp_path / "art").as_uri()))
    for name in ("a", "b"):
        spool.add(make_record(name=name))
    spool.close("FINISHED")
    result = CliRunner().invoke(cli.app, ["sync", str(folder)])
    assert result.exit_code == 0
    assert result.output.endswith("sent 2 of 2 records\n")
    assert statuses(uri) == dict.fromkeys(("run", "train [a]", "train [b]"), "FINISHED")
    with pytest.raises(ConfigError, match="is not a run folder"):
        CliRunner().invoke(cli.app, ["sync", str(tmp_path)], catch_exceptions=False)


def test_credentials_in_a_uri_are_refused_and_not_repeated(
    experiment_data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = "https://user:secret@mlflow.example"
    with pytest.raises(ConfigError, match=r"tracking: 'uri' holds a user or password"):
        parse_experiment(experiment_data | {"tracking": {"uri": uri}}, "test")
    monkeypatch.setenv(URI, uri)
    with pytest.raises(ConfigError, match=r"MLFLOW_TRACKING_URI holds a user or password") as refusal:
        MlflowSender(parse_experiment(experiment_data, "test"), tmp_path / "run", tmp_path / "log")
    assert "secret" not in str(refusal.value)


def _open(store: str, ready: Any) -> None:
    ready.wait()
    client(Target(uri=store)).search_registered_models(max_results=1)


def test_processes_that_open_a_new_store_at_once_do_not_collide(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    arguments = f"sqlite:///{tmp_path / 'mlflow.db'}", context.Barrier(3)
    openers = [context.Process(target=_open, args=arguments) for _ in range(3)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join()
    assert [opener.exitcode for opener in openers] == [0, 0, 0]
