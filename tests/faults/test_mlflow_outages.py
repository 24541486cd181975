"""MLflow down, silent, wrong or locked: no stage fails, the run's end waits a bounded time, nothing is lost.

What was not sent is sent later, each record as one run. Only `register`, which needs the registry, fails.
"""

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from automixalign.config.experiment import RegistrySettings, parse_experiment
from automixalign.config.release import RegistrySpec
from automixalign.preflight.validate import plan_experiment
from automixalign.release.register import register
from automixalign.steps.step import run_step
from automixalign.steps.tracking.record import Record
from automixalign.steps.tracking.send import send_waiting
from automixalign.steps.tracking.spool import FOLDER, FOLLOWED, RUN_ID, URI, Spool, Target
from automixalign.storage import files
from automixalign.system.errors import UnreachableError
from benchmarks import tiny
from benchmarks.servers.mlflow_server import server
from benchmarks.servers.mlflow_store import sqlite_store
from benchmarks.servers.ports import free_port
from benchmarks.servers.proxy import Fault, Proxy, http, proxy
from pipelines.local.mlflow_sender import MlflowSender
from tests.faults.command_line import ama
from tests.faults.common import raises

STAGES = ("train [a]", "train [b]", "evaluate [a]", "compare")
WEB_PAGE = http("200 OK", b"<html><body>welcome to nginx</body></html>", "text/html")
BROKEN = http("500 Internal Server Error", b"<html>oops</html>", "text/html")
ADVICE = "check that the MLflow server is up and that MLFLOW_TRACKING_URI is its address"
WITH_REGISTRY = {**tiny.experiment(), "registry": {"name": "assistant"}}


@pytest.fixture(autouse=True)
def _untracked(environment: Callable[..., None]) -> None:
    environment(**dict.fromkeys((URI, RUN_ID, FOLDER, FOLLOWED)))


@pytest.fixture
def _hasty(environment: Callable[..., None]) -> None:
    """MLflow gives up soon, for faults that do not depend on its patience."""
    environment(MLFLOW_HTTP_REQUEST_TIMEOUT="3", MLFLOW_HTTP_REQUEST_MAX_RETRIES="1")


@pytest.fixture
def between(tmp_path: Path, _hasty: None) -> Iterator[Proxy]:
    """A proxy in front of an MLflow server."""
    port = free_port()
    with server(tmp_path, port, str(tmp_path / "artifacts")), proxy(port) as between:
        yield between


def record(title: str) -> Record:
    """The record of a stage, with something of each kind."""
    stage, _, name = title.removesuffix("]").partition(" [")
    made = Record(stage=stage, name=name, ended=time.time())
    made.add_params({"training": {"beta": 0.1}})
    for step in range(3):
        made.add_metrics({"loss": 1 / (step + 1)}, step)
    return made


def filled_spool(folder: Path, uri: str, artifacts: str | None = None) -> Spool:
    """A spool with the records of a run that has ended."""
    spool = Spool(folder / "spool")
    spool.aim(Target(uri=uri, run_name="run", artifacts=artifacts))
    for title in STAGES:
        spool.add(record(title))
    spool.close("FINISHED")
    return spool


def runs_of(uri: str) -> list[Run]:
    client = MlflowClient(uri)
    return list(client.search_runs([client.get_experiment_by_name("automixalign").experiment_id]))


def check_all_once(uri: str) -> None:
    """A store has each stage once, whole, below the run of the pipeline, which has ended."""
    runs = {run.info.run_name: run for run in runs_of(uri)}
    assert sorted(run.info.run_name for run in runs_of(uri)) == sorted(["run", *STAGES])
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for title in STAGES:
        history = MlflowClient(uri).get_metric_history(runs[title].info.run_id, "loss")
        assert [point.step for point in history] == [0, 1, 2]
        assert runs[title].data.params == {"training.beta": "0.1"}
        assert runs[title].data.tags["mlflow.parentRunId"] == runs["run"].info.run_id


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "part"),
    [
        pytest.param(Fault(stall_received=0), "timed out", id="silent"),
        pytest.param(Fault(answer=WEB_PAGE), "JSON", id="a web page"),
    ],
)
def test_a_fault_is_named_and_then_all_is_sent(between: Proxy, tmp_path: Path, fault: Fault, part: str) -> None:
    spool = filled_spool(tmp_path, between.url)
    between.fault = fault
    assert part in (send_waiting(spool) or "")
    assert len(spool.waiting()) == len(STAGES)
    between.fault = Fault()
    assert send_waiting(spool) is None
    check_all_once(between.url)


@pytest.mark.slow
def test_answers_are_lost(between: Proxy, tmp_path: Path) -> None:
    """The server does the work, and the connection breaks before its answer arrives."""
    spool = filled_spool(tmp_path, between.url)
    between.fault = Fault(cut_received=13_000)
    for _ in range(60):
        if (message := send_waiting(spool)) is None:
            break
    struck, between.fault = between.struck, Fault()
    assert message is None
    assert struck > 2
    check_all_once(between.url)


@pytest.mark.slow
def test_a_slow_server_is_given_up_in_time(between: Proxy, tmp_path: Path) -> None:
    """Every answer takes half a second, and a stage may wait for three; a later stage goes on."""
    spool = filled_spool(tmp_path, between.url)
    between.fault = Fault(delay=0.5)
    began = time.monotonic()
    assert "the server is slow" in (send_waiting(spool, seconds=3) or "")
    assert time.monotonic() - began < 60
    between.fault = Fault()
    assert send_waiting(spool) is None
    check_all_once(between.url)


@pytest.mark.slow
@pytest.mark.parametrize("stages_with_server", [0, 2])
def test_the_server_is_gone_before_the_run_ends(
    tmp_path: Path, environment: Callable[..., None], stages_with_server: int
) -> None:
    """The run's end waits a bounded time and names `ama sync`, which sends the rest."""
    port, run_folder = free_port(), tmp_path / "run"
    uri = f"http://127.0.0.1:{port}"
    run_folder.mkdir()
    environment(**{URI: uri})
    sender = MlflowSender(parse_experiment(tiny.experiment(), "the test"), run_folder, tmp_path / "mlflow.log")
    with ExitStack() as stack:
        if stages_with_server:
            stack.enter_context(server(tmp_path, port, str(tmp_path / "artifacts")))
        sender.start_if_needed()
        for number, title in enumerate(STAGES):
            if number == stages_with_server:
                stack.close()
            sender.spool.add(record(title))
            deadline = time.monotonic() + 60
            while number < stages_with_server and sender.spool.waiting():
                assert time.monotonic() < deadline
                time.sleep(0.1)
    began = time.monotonic()
    sender.close("FINISHED")
    assert "ama sync" in (sender.wait() or "")
    assert time.monotonic() - began < 60
    with server(tmp_path, port, str(tmp_path / "artifacts")):
        ended = ama("sync", run_folder)
        assert ended.returncode == 0, ended.stderr
        check_all_once(uri)


def test_a_stage_that_sends_its_own_record(tmp_path: Path, environment: Callable[..., None]) -> None:
    """On a cluster, with a server that is down."""
    environment(**{FOLDER: str(tmp_path / "spool"), URI: f"http://127.0.0.1:{free_port()}"})
    began = time.monotonic()
    with run_step("train_specialist", "a"):
        (tmp_path / "model").write_text("made")
    assert time.monotonic() - began < 30
    assert (tmp_path / "model").exists()
    assert len(Spool(tmp_path / "spool").waiting()) == 1


@pytest.mark.slow
def test_a_run_with_a_server_that_is_down(tmp_path: Path) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    (tmp_path / "config.yaml").write_text(json.dumps(tiny.experiment()))
    ended = ama("run", "--config", tmp_path / "config.yaml", "--output", tmp_path / "run", **{URI: uri})
    assert ended.returncode == 0, ended.stderr
    assert "ama sync" in ended.stdout
    assert (tmp_path / "run" / "leaderboard.json").exists()
    with server(tmp_path, port, str(tmp_path / "artifacts")):
        ended = ama("sync", tmp_path / "run")
        assert ended.returncode == 0, ended.stderr
        names = [run.info.run_name for run in runs_of(uri)]
    assert len(names) == len(set(names)) > 5


@pytest.mark.slow
def test_the_sqlite_store_is_locked(tmp_path: Path) -> None:
    """By another process, after it has taken the first records."""
    uri = sqlite_store(tmp_path / "mlflow.db")
    spool = filled_spool(tmp_path, uri, (tmp_path / "artifacts").as_uri())
    _, *rest = spool.waiting()
    contents = {file: file.read_bytes() for file in rest}
    for file in rest:
        file.unlink()
    assert send_waiting(spool) is None
    for file, content in contents.items():
        file.write_bytes(content)
    holder = sqlite3.connect(tmp_path / "mlflow.db")
    holder.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()
    assert "locked" in (send_waiting(spool) or "")
    assert time.monotonic() - began < 60
    holder.close()
    assert send_waiting(spool) is None
    check_all_once(uri)


@pytest.mark.slow
def test_the_sqlite_store_is_damaged_and_then_removed(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    spool = filled_spool(tmp_path, uri)
    # In processes of their own, for MLflow keeps a store open.
    command = [sys.executable, "-m", "automixalign.steps.tracking", str(spool.folder)]
    (tmp_path / "mlflow.db").write_bytes(os.urandom(8192))
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "file is not a database" in ended.stderr.strip().rpartition("\n")[2]
    assert len(spool.waiting()) == len(STAGES)
    (tmp_path / "mlflow.db").unlink()
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    check_all_once(uri)


def test_the_plan_notices_a_registry_that_is_down(environment: Callable[..., None]) -> None:
    environment(**{URI: f"http://127.0.0.1:{free_port()}"})
    with raises(UnreachableError, "does not answer as a model registry", ADVICE):
        plan_experiment(parse_experiment(WITH_REGISTRY, "the test"))


@pytest.mark.usefixtures("_hasty")
@pytest.mark.parametrize(
    "fault",
    [pytest.param(Fault(), id="down"), pytest.param(Fault(answer=BROKEN), id="500", marks=pytest.mark.slow)],
)
def test_register_needs_the_registry(tmp_path: Path, environment: Callable[..., None], fault: Fault) -> None:
    world, row = tiny.world(), {"gap": 0.05, "excess": 0.1, "accuracy": 0.9}
    views = {"worst": row, "average": row, "tasks": {"format": row, "refusal": row}}
    board = [{"model": "uniform", "family": "generalist", **views, "validation": views}]
    files.write_json(tmp_path / "board.json", board)
    settings = RegistrySettings(
        seed=0, registry=RegistrySpec(name="assistant"), experiment=parse_experiment(WITH_REGISTRY, "the test")
    )
    candidates, output = {"uniform": world.base_model}, tmp_path / "registration.json"
    with proxy(free_port()) as between:
        between.fault = fault
        environment(**{URI: between.url, FOLDER: str(tmp_path / "spool"), FOLLOWED: "1"})
        with (
            raises(UnreachableError, "uniform cannot be registered as assistant", ADVICE),
            run_step("register"),
        ):
            paths = {"data": world.data, "base_model": world.base_model, "output": output}
            register(settings, tmp_path / "board.json", candidates, **paths)
    assert not output.exists()
