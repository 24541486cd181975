"""The image, and the DAG in containers of it. Without a container engine, everything fails."""

import ast
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import docker
import pytest
import yaml

from automixalign import __version__
from automixalign.storage.files import digest
from pipelines.local.containers import RUN
from tests.container.container_engine import BASE, IMAGE, NoEngineError, build, engine, say

pytestmark = pytest.mark.container

ROOT = Path(__file__).parents[2]
TMP = "/tmp"  # noqa: S108  inside the containers
RESTRICTED = {
    "user": "12345:0",
    "read_only": True,
    "tmpfs": {TMP: ""},
    "network_mode": "none",
    "cap_drop": ["ALL"],
}
"""The options of an OpenShift cluster: any user, and /tmp as the only writable folder."""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory, base_model: Path) -> Path:
    """A folder with the base model and data to which the configuration has relative paths."""
    folder = tmp_path_factory.mktemp("workspace")
    shutil.copytree(base_model, folder / "base")
    words = [f"word{number}" for number in range(30)]
    rows = [{"prompt": f"say {word}:", "chosen": f" {word}!", "rejected": f" {word[::-1]}?"} for word in words]
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def by_processes(workspace: Path) -> Iterator["subprocess.Popen[str]"]:
    """A run of the DAG in processes, while the image is built."""
    with started(workspace, experiment(), "-o", "by-processes") as process:
        yield process


@pytest.fixture(scope="session")
def address(by_processes: object) -> Iterator[str]:
    """The address of an engine that has the image."""
    with tempfile.TemporaryDirectory(prefix="ama-") as folder, ExitStack() as stack:
        try:
            address = stack.enter_context(engine(Path(folder)))
        except NoEngineError as error:
            pytest.exit(f"NO CONTAINER ENGINE: NOTHING WAS TESTED IN CONTAINERS. {error}", returncode=3)
        (Path(folder) / "scratch").mkdir()
        build(address, Path(folder) / "scratch")
        yield address


@pytest.fixture(scope="session")
def client(address: str) -> docker.DockerClient:
    return docker.DockerClient(address)


@pytest.fixture
def in_containers(address: str, workspace: Path) -> Iterator[Start]:
    """Starts runs of the DAG in containers."""
    with ExitStack() as stack:

        def start(experiment: dict[str, Any], run: Path, **environment: str) -> "subprocess.Popen[str]":
            environment = {"DOCKER_HOST": address, "AMA_IMAGE": IMAGE, **environment}
            return stack.enter_context(
                started(workspace, experiment, "--runner", "docker", "-o", str(run), **environment)
            )

        yield start


@contextmanager
def started(
    folder: Path, experiment: dict[str, Any], *arguments: str, **environment: str
) -> Iterator["subprocess.Popen[str]"]:
    """`ama run` with an experiment; terminated at the end."""
    with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".yaml") as file:
        yaml.safe_dump(experiment, file)
        command = [sys.executable, "-c", "from pipelines.cli import main; main()", "run", "-c", file.name]
        command.append("--no-cache")  # runs must not share results
        process = subprocess.Popen(
            [*command, *arguments],
            cwd=folder,
            env={**os.environ, "COLUMNS": "200", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            process.terminate()
            process.communicate()


def finish(process: "subprocess.Popen[str]", status: int) -> tuple[str, str]:
    """What a process prints until it ends with this status."""
    out, err = process.communicate()
    assert process.returncode == status, out + err
    return out, err


def experiment(**changes: Any) -> dict[str, Any]:
    return {
        "name": "boxed",
        "base_model": "./base",
        "tasks": [
            {"name": "arithmetic", "source": "synthetic:arithmetic", "limit": 40, "verifier": "exact"},
            {"name": "own", "source": "own.jsonl"},
        ],
        "max_length": 64,
        "split": {"validation": 0.1, "test": 0.2},
        "training": {"batch_size": 4, "learning_rate": 0.02, "lora": {"rank": 2}},
        "budget": {"specialist": {"steps": 6}, "generalist": {"steps": 8}},
        "methods": ["ama-r"],
        "merges": ["linear"],
        "evaluation": {"max_new_tokens": 4},
        "registry": {"name": "boxed"},
        **changes,
    }


LONG = experiment(base_model={"source": "tiny", "tiny": {}}, registry=None)
"""Its second stage takes ten seconds. Without a registry, no stage sees the MLflow store."""


def wait_for(process: "subprocess.Popen[str]", client: docker.DockerClient, run: Path, stage: str) -> Any:
    """The container of a stage of a run, after the stage has started."""
    events = run / "logs" / "events.jsonl"
    deadline = time.monotonic() + 120
    while stage not in (events.read_text() if events.exists() else ""):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (container,) = containers_of(client, run)
    return container


def containers_of(client: docker.DockerClient, run: Path) -> list[Any]:
    return list(client.containers.list(all=True, filters={"label": f"{RUN}={run}"}))


def test_the_image_has_labels_and_is_small(client: docker.DockerClient) -> None:
    image = client.images.get(IMAGE)
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in image.labels.items()}
    assert labels["title"] == "automixalign"
    assert labels["description"]
    assert labels["version"] == __version__
    assert labels["licenses"] == "Apache-2.0"
    assert {"source", "revision"} <= labels.keys()
    assert labels["automixalign.accelerator"] == "cpu"
    assert image.attrs["Config"]["User"] == "1001:0"
    say(f"image: {image.attrs['Size'] / 1e9:.2f} GB")
    assert image.attrs["Size"] <= 2e9


def test_the_bill_of_materials_has_every_package_with_its_licence(client: docker.DockerClient) -> None:
    path = client.images.get(IMAGE).labels["automixalign.sbom"]
    client.containers.run(IMAGE, ["test", "-r", path], remove=True, **RESTRICTED)
    bom = json.loads(content_of(client, path))
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    listed = {name_of(part["name"]): part for part in [bom["metadata"]["component"], *bom["components"]]}
    look = "import importlib.metadata as m; print({d.metadata['Name']: d.version for d in m.distributions()})"
    inside = ast.literal_eval(
        client.containers.run(IMAGE, ["python", "-c", look], remove=True, **RESTRICTED).decode()
    )
    assert {name: part["version"] for name, part in listed.items()} == {
        name_of(name): version for name, version in inside.items()
    }
    assert "automixalign" in listed
    assert len(listed) > 100
    for name, part in listed.items():
        licences = [each.get("expression") or each["license"] for each in part["licenses"]]
        assert all(licences), name
        assert "NOASSERTION" not in str(licences), name
        assert name == "automixalign" or part["purl"].startswith("pkg:pypi/"), name
    say(f"bill of materials: {len(listed)} packages")


def content_of(client: docker.DockerClient, path: str) -> bytes:
    """A file of the image. The engine may cut a long output of a container short."""
    container = client.containers.create(IMAGE)
    try:
        chunks, _ = container.get_archive(path)
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
            (member,) = archive.getmembers()
            file = archive.extractfile(member)
            assert file is not None
            return file.read()
    finally:
        container.remove()


def name_of(package: str) -> str:
    """A package's name in the normal form of package indices."""
    return re.sub("[-_.]+", "-", package).lower()


def test_the_image_has_no_tools_to_build_or_install(client: docker.DockerClient) -> None:
    look = r"""
        for tool in cc gcc g++ clang ld as make cmake pip pip3; do command -v $tool; done
        find / -xdev \( -name ensurepip -o -name pip -o -name setuptools -o -name '*.whl' \) 2>/dev/null
        find /var/lib/apt/lists /var/cache/apt -type f -size +100k 2>/dev/null
        find / -xdev -path /proc -prune -o -writable ! -type l ! -type c -print 2>/dev/null
        true
    """
    paths = client.containers.run(IMAGE, ["sh", "-c", look], remove=True, user="12345:0")
    assert set(paths.decode().split()) <= {"/tmp", "/var/tmp", "/run/lock"}  # noqa: S108


def test_any_user_can_run_it_on_a_read_only_file_system(client: docker.DockerClient) -> None:
    work = """
import getpass, matplotlib, pathlib
import boto3, datasets, gguf, kfp, mergekit, mlflow.transformers, peft, scipy.stats, torch, transformers, trl
from automixalign.merging import merge
from automixalign.release import register
from automixalign.storage import s3
from automixalign.training import trainer
from matplotlib import pyplot
pyplot.plot([1, 2])
pyplot.savefig("plot.png")
print(getpass.getuser(), pathlib.Path.home(), pathlib.Path("plot.png").stat().st_size > 0)
"""
    output = client.containers.run(IMAGE, ["python", "-c", work], remove=True, **RESTRICTED)
    assert output.decode().split() == ["automixalign", TMP, "True"]
    version = client.containers.run(IMAGE, ["ama", "--version"], remove=True, **RESTRICTED)
    assert version.decode().strip() == f"automixalign {__version__}"


def test_containers_give_the_same_numbers_as_processes(
    by_processes: "subprocess.Popen[str]",
    in_containers: Start,
    client: docker.DockerClient,
    workspace: Path,
    tmp_path: Path,
) -> None:
    finish(by_processes, 0)
    one, other = workspace / "by-processes", tmp_path / "run"
    began = time.monotonic()
    run = in_containers(experiment(), other)
    finish(run, 0)
    say(f"the DAG in containers: {time.monotonic() - began:.0f} s")
    boards = [json.loads((run / "leaderboard.json").read_text()) for run in (one, other)]
    assert boards[0] == boards[1]
    assert {entry["model"] for entry in boards[0]} >= {"reference", "specialist-own", "ama-r", "linear"}
    weights = sorted(path.relative_to(one) for path in one.glob("models/*/*.safetensors"))
    assert len(weights) == 5
    for what in (*weights, "data"):
        assert digest(one / what) == digest(other / what), what
    assert json.loads((other / "registration.json").read_text())["champion"]
    assert not list((other / ".kfp" / "spool").glob("*.record.json")), "MLflow has everything"
    assert {path.stat().st_uid for path in (other / ".kfp").rglob("*")} == {0, 1001}, "no stage ran as root"
    assert containers_of(client, other) == []
    assert not (other / ".kfp" / "scratch").exists()
    out, _ = finish(in_containers(experiment(), other), 0)
    assert out.count("from cache") == 16, "all except the stages that check sources and the registry"
    assert json.loads((other / "leaderboard.json").read_text()) == boards[1]


def test_a_stage_is_isolated_and_ends_with_its_run(
    in_containers: Start, client: docker.DockerClient, workspace: Path, tmp_path: Path
) -> None:
    run = in_containers(LONG, tmp_path / "run")
    container = wait_for(run, client, tmp_path / "run", "prepare_base_model")
    host = container.attrs["HostConfig"]
    assert container.attrs["Config"]["User"] == "1001:0"
    assert host["NetworkMode"] == "none"
    assert host["CapDrop"] == ["ALL"]
    assert host["ReadonlyRootfs"]
    assert not host["Privileged"]
    assert host["PidsLimit"] == 4096
    assert 0 < host["Memory"] < client.info()["MemTotal"]
    mounts = {mount["Source"]: mount["RW"] for mount in container.attrs["Mounts"]}
    assert not mounts.pop(str(workspace / "own.jsonl"))
    assert all(Path(source).is_relative_to(tmp_path / "run") for source in mounts)
    inside = "cat /proc/self/status /proc/net/dev; touch /opt/ama/x /etc/x || echo read-only"
    output = container.exec_run(["sh", "-c", inside]).output.decode()
    assert "CapEff:\t0000000000000000" in output
    assert "NoNewPrivs:\t1" in output
    assert "Uid:\t1001\t1001\t1001\t1001" in output
    assert "lo:" in output
    assert "eth0" not in output
    assert "read-only\n" in output
    run.terminate()
    assert run.wait(30) == 143
    assert containers_of(client, tmp_path / "run") == []


def test_a_killed_stage_fails_a_run(in_containers: Start, client: docker.DockerClient, tmp_path: Path) -> None:
    """The system kills it when memory runs out; kfp's runner may report a success."""
    run = in_containers(LONG, tmp_path / "run")
    wait_for(run, client, tmp_path / "run", "prepare_base_model").kill()
    _, err = finish(run, 1)
    assert "prepare_base_model failed: ended without an error message: it was killed (SIGKILL)" in err


def test_a_stage_reaches_s3_and_a_failed_stage_names_its_log(
    s3: Any, in_containers: Start, workspace: Path, tmp_path: Path
) -> None:
    """Uses the network of this machine: the server listens on its loopback address."""
    for file in (workspace / "base").iterdir():
        s3.upload_file(str(file), "ready", f"base/{file.name}")
    failing = experiment(base_model="s3://ready/base", max_length=8)
    out, err = finish(in_containers(failing, tmp_path / "run", AMA_DOCKER_NETWORK="host"), 1)
    assert "prepare_data failed" in err
    assert "fits max_length=8" in err
    log = tmp_path / "run" / "logs" / "prepare_data.log"
    assert str(log) in err
    assert "Traceback" not in err
    assert "Traceback" in log.read_text()
    fetched = tmp_path / "run" / "models" / "reference" / "model.safetensors"
    assert digest(fetched) == digest(workspace / "base" / "model.safetensors")
    texts = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    secret = os.environ["AWS_SECRET_ACCESS_KEY"].encode()
    assert not any(secret in text for text in [*texts, (out + err).encode()])


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"AMA_IMAGE": "automixalign:none"}, "there is no image automixalign:none; `make images` builds it"),
        ({"AMA_IMAGE": BASE}, f"the image {BASE} does not run this library: "),
        ({"AMA_DOCKER_MEMORY": "1k"}, "a container cannot be started as the run needs it: "),
    ],
)
def test_a_run_that_cannot_work_is_refused_before_any_stage(
    environment: dict[str, str], message: str, in_containers: Start, tmp_path: Path
) -> None:
    _, err = finish(in_containers(LONG, tmp_path / "run", **environment), 2)
    assert message in err
    assert not (tmp_path / "run").exists()


def test_a_plugin_is_in_the_image_as_the_page_says(
    in_containers: Start, client: docker.DockerClient, workspace: Path, tmp_path: Path
) -> None:
    """docs/extending.md has the module and the image's file."""
    page = (ROOT / "docs" / "extending.md").read_text()
    (module,) = re.findall(r"```python\n(# my_mixers\.py\n.*?)```", page, re.DOTALL)
    (dockerfile,) = re.findall(r"```dockerfile\n(.*?)```", page, re.DOTALL)
    (method,) = re.findall(r'@register\("(.*)"\)', module)
    (tmp_path / "my_mixers.py").write_text(module)
    extended = LONG | {"plugins": ["my_mixers"], "methods": [method]}
    with_module = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    _, err = finish(in_containers(extended, tmp_path / "run", **with_module), 2)
    assert "has no my_mixers, or another version of it: add it to the image" in err
    (tmp_path / "Dockerfile").write_text(dockerfile.replace(f"automixalign:{__version__}", IMAGE))
    client.images.build(path=str(tmp_path), tag="with-plugin:test")
    run = in_containers(extended, tmp_path / "run", AMA_IMAGE="with-plugin:test", **with_module)
    wait_for(run, client, tmp_path / "run", "prepare_base_model")


def test_a_source_stages_may_not_read_is_refused(in_containers: Start, workspace: Path, tmp_path: Path) -> None:
    shutil.copytree(workspace / "base", tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").chmod(0o600)
    _, err = finish(in_containers(experiment(base_model=str(tmp_path / "base")), tmp_path / "run"), 2)
    assert f"user 1001 of group 0, who has no access to {tmp_path}/base/model.safetensors: " in err
