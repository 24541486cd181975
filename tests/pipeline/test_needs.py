"""The files, networks and environment variables that a run's containers get, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from automixalign.config.experiment import parse_experiment
from automixalign.system.errors import ConfigError
from pipelines.local.containers import Containers
from pipelines.local.needs import Needs, needs_of
from tests.scoring.benchmark_tasks import write_generation

Data = dict[str, Any]


def needs(data: Data, **environ: str) -> Needs:
    return needs_of(parse_experiment(data, "test"), environ)


@pytest.fixture
def data(experiment_data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Data:
    """An experiment on generated tasks, in a folder that also holds rows."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "rows.jsonl").touch()
    return experiment_data


def test_generated_tasks_and_a_tiny_model_need_nothing(data: Data) -> None:
    assert needs(data, AWS_SECRET_ACCESS_KEY="x", MLFLOW_TRACKING_URI="http://127.0.0.1:5000") == Needs()


def test_local_sources_are_mounted_by_absolute_path(data: Data, tmp_path: Path) -> None:
    data["tasks"][0] = {"name": "own", "source": "own/rows.jsonl"}
    data["base_model"] = {"source": "../" + tmp_path.name + "/own"}
    result = needs(data)
    assert {path.resolve() for path in result.read} == {tmp_path / "own", tmp_path / "own" / "rows.jsonl"}
    assert all(path.is_absolute() for path in result.read)
    assert (result.services, result.write) == ({}, set())


def test_every_file_of_a_benchmark_is_mounted(data: Data, tmp_path: Path) -> None:
    write_generation(tmp_path / "tasks")
    result = needs(data | {"benchmarks": ["tasks/answers.yaml"]})
    names = ("answers.yaml", "choice.yaml", "checks.py", "data/questions.jsonl")
    assert result.read == {tmp_path / "tasks" / name for name in names}
    assert result.services == {}


def test_targets_of_links_are_mounted_too(data: Data, tmp_path: Path) -> None:
    """In the hub's cache, a snapshot is a folder of links to files elsewhere."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "12ab").write_text("weights")
    (tmp_path / "snapshots" / "main").mkdir(parents=True)
    (tmp_path / "snapshots" / "main" / "model.safetensors").symlink_to("../../blobs/12ab")
    (tmp_path / "snapshots" / "main" / "same.safetensors").symlink_to("model.safetensors")
    (tmp_path / "snapshots" / "main" / "gone").symlink_to("nowhere")
    data["base_model"] = {"source": str(tmp_path / "snapshots" / "main")}
    assert needs(data).read == {tmp_path / "snapshots" / "main", tmp_path / "blobs" / "12ab"}


def test_s3_gets_its_variables_and_the_files_that_they_name(data: Data, tmp_path: Path) -> None:
    (tmp_path / "credentials").touch()
    data["tasks"][1] = {"name": "far", "source": "s3://bucket/far/"}
    result = needs(
        data,
        AWS_ACCESS_KEY_ID="a",
        AWS_SHARED_CREDENTIALS_FILE=str(tmp_path / "credentials"),
        AWS_ENDPOINT_URL="https://s3.example",
        HTTPS_PROXY="http://proxy.example:3128",
        HF_TOKEN="t",
        SHELL="/bin/sh",
    )
    assert result.services == {"s3": "tasks.1.sources.0"}
    expected = {"AWS_ACCESS_KEY_ID", "AWS_SHARED_CREDENTIALS_FILE", "AWS_ENDPOINT_URL", "HTTPS_PROXY"}
    assert (result.variables, result.loopback) == (expected, set())
    assert result.read == {tmp_path / "credentials"}


@pytest.mark.parametrize(
    ("change", "services"),
    [
        ({"base_model": "s3://bucket/model"}, {"s3": "base_model.source"}),
        ({"output": "s3://bucket/run"}, {"s3": "output.to"}),
        ({"base_model": "owner/name"}, {"hub": "base_model.source"}),
        ({"registry": {"name": "m"}, "tracking": {"uri": "https://mlflow.example"}}, {"mlflow": "registry"}),
        ({"base_model": "models:/m/1", "tracking": {"uri": "databricks"}}, {"mlflow": "base_model.source"}),
        (
            {"evaluation": {"judge": {"base_url": "https://judge.example/v1", "model": "j"}}},
            {"judge": "evaluation.judge.base_url"},
        ),
        ({"registry": {"name": "m"}}, {}),
        ({"tracking": {"uri": "https://mlflow.example"}}, {}),
        ({"benchmarks": ["toxigen"]}, {"hub": "benchmarks.0"}),
    ],
    ids=[
        "model on S3",
        "output",
        "hub",
        "registry",
        "models:/",
        "judge",
        "registry of the run",
        "tracking alone",
        "benchmark",
    ],
)
def test_only_the_services_of_stages_get_a_network(data: Data, change: Data, services: dict[str, str]) -> None:
    assert needs(data | change).services == services


def test_the_parent_of_an_output_folder_is_writable(data: Data, tmp_path: Path) -> None:
    assert needs(data | {"output": "new/out"}).write == {tmp_path}


def test_the_folder_of_a_store_is_writable_for_the_registry(data: Data, tmp_path: Path) -> None:
    assert needs(data).store is None
    default = needs(data | {"registry": {"name": "m"}})
    assert (default.store, default.write) == (tmp_path / "mlflow.db", {tmp_path})
    other = needs(data | {"registry": {"name": "m"}}, MLFLOW_TRACKING_URI="sqlite:////a%25b/c.db")
    assert (other.store, other.write) == (Path("/a%b/c.db"), {Path("/a%b")})


NO_STORE = "tracking.uri: the MLflow store file:///elsewhere is a folder of files"
OFFLINE = "base_model.source is on the hub, but HF_HUB_OFFLINE is set"
PACKAGE = "base_model.source: package:smol/m.gguf is in a package of"


@pytest.mark.parametrize(
    ("change", "environ", "message"),
    [
        ({"base_model": "package:smol/m.gguf"}, {}, PACKAGE),
        ({"base_model": "owner/name"}, {"HF_HUB_OFFLINE": "1"}, OFFLINE),
        ({"registry": {"name": "m"}}, {"MLFLOW_TRACKING_URI": "file:///elsewhere"}, NO_STORE),
    ],
    ids=["package", "offline", "store in a folder"],
)
def test_what_containers_cannot_reach_is_refused(
    data: Data, change: Data, environ: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        needs(data | change, **environ)


@pytest.mark.parametrize(
    ("change", "variable"),
    [({"output": "s3://bucket/run"}, "AWS_ENDPOINT_URL"), ({"registry": {"name": "m"}}, "MLFLOW_TRACKING_URI")],
)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_a_server_on_the_loopback_is_refused_before_the_engine_is_called(
    data: Data, change: Data, variable: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, f"http://{host}:8333")
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    with pytest.raises(ConfigError, match=f"{variable}: a container has a loopback address of its own"):
        Containers(parse_experiment(data | change, "test"))
    monkeypatch.setenv("AMA_DOCKER_NETWORK", "host")
    with pytest.raises(ConfigError, match="no container engine answers at unix:///nowhere/"):
        Containers(parse_experiment(data | change, "test"))
