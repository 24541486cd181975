"""A training on several nodes, as a TrainJob that a stub of Kubeflow Trainer checks and runs."""

import json
import os
import shutil
import signal
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from kubernetes.config import incluster_config
from safetensors.torch import load_file

from automixalign.config.cluster import TRAIN_JOB, Pod, TrainJobRequest
from automixalign.config.methods import GeneralistSettings
from automixalign.steps.step import run_step
from automixalign.storage import files
from automixalign.system.errors import AutoMixAlignError, CacheError, ConfigError, StorageError, TrainingError
from automixalign.training.generalist import GeneralistTraining
from automixalign.training.job import RESULT
from automixalign.training.launch import train
from automixalign.training.nodes import manifest as train_job_manifest
from automixalign.training.nodes import server as train_job_server
from automixalign.training.nodes import train_job
from automixalign.training.nodes.handover import Exchange, pack
from automixalign.training.specialist import SpecialistTraining
from tests.training.trainer_stub import NAMESPACE, Stub, condition, running, trainer_stub

STEPS = 4
GPUS = {
    "cpu": "16",
    "cpu_limit": "32",
    "memory": "512Gi",
    "scratch": "200Gi",
    "shared_memory": "64Gi",
    "accelerator": "nvidia.com/gpu",
    "accelerators": 8,
    "node_selector": {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"},
    "tolerations": [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "spot", "value": "true", "effect": "NoExecute", "toleration_seconds": 60},
    ],
    "timeout_seconds": 86400,
}


def request(pod: dict[str, Any], **changes: Any) -> TrainJobRequest:
    given = {
        "storage": "s3://jobs/here",
        "image": "registry.example/automixalign@sha256:0",
        "pod": pod,
        "secrets": {},
        "environment": "automixalign-env",
        "image_pull_secrets": [],
        **changes,
    }
    return TrainJobRequest.model_validate(given)


def render(pod: dict[str, Any], **changes: Any) -> dict[str, Any]:
    uri = "s3://jobs/here/trainings/ama-r-0"
    return train_job_manifest.render(request(pod, **changes), "train-ama-r-0", uri, 2, 8)


def of_the_pod(manifest: dict[str, Any]) -> dict[str, Any]:
    (patch,) = manifest["spec"]["runtimePatches"]
    (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    spec: dict[str, Any] = job["template"]["spec"]["template"]["spec"]
    return spec


def send(stub: Stub, manifest: dict[str, Any]) -> int:
    """The status that the cluster answers to a TrainJob."""
    url = (
        f"{stub.url}/apis/trainer.kubeflow.org/v1alpha1/namespaces/{NAMESPACE}/trainjobs?fieldValidation=Strict"
    )
    call = urllib.request.Request(url, json.dumps(manifest).encode(), method="POST")  # noqa: S310
    try:
        with urllib.request.urlopen(call) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """A cluster that this process reaches by its kubeconfig; waits are short."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(folder / "kubeconfig"))
    monkeypatch.setattr(train_job, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(train_job, "_WAITS", (0.01, 0.02, 0.03))
    with trainer_stub(folder) as cluster:
        yield cluster


def test_a_trainjob_says_all_that_was_asked_for() -> None:
    manifest = render(GPUS, image_pull_secrets=["registry"])
    assert manifest["metadata"]["name"] == "train-ama-r-0"
    assert manifest["metadata"]["labels"] == {"app.kubernetes.io/part-of": "automixalign"}
    spec = manifest["spec"]
    assert spec["runtimeRef"] == {
        "apiGroup": "trainer.kubeflow.org",
        "kind": "ClusterTrainingRuntime",
        "name": "torch-distributed",
    }
    assert spec["activeDeadlineSeconds"] == 86400
    optional = {"name": "automixalign-s3", "optional": True}
    settings = {"name": "automixalign-env", "optional": True}
    assert spec["trainer"] == {
        "image": "registry.example/automixalign@sha256:0",
        "command": ["python", "-m", "automixalign.training.nodes.node", "s3://jobs/here/trainings/ama-r-0"],
        "numNodes": 2,
        "numProcPerNode": 8,
        "env": [
            *(
                {"name": key, "valueFrom": {"secretKeyRef": {**optional, "key": key}}}
                for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
            ),
            *(
                {"name": key, "valueFrom": {"configMapKeyRef": {**settings, "key": key}}}
                for key in ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")
            ),
            {"name": "OMP_NUM_THREADS", "value": "2"},
        ],
        "resourcesPerNode": {
            "requests": {"cpu": "16", "memory": "512Gi", "nvidia.com/gpu": "8"},
            "limits": {"cpu": "32", "memory": "512Gi", "nvidia.com/gpu": "8"},
        },
    }
    assert of_the_pod(manifest) == {
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "nodeSelector": {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"},
        "tolerations": [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
            {
                "key": "spot",
                "operator": "Equal",
                "value": "true",
                "effect": "NoExecute",
                "tolerationSeconds": 60,
            },
        ],
        "imagePullSecrets": [{"name": "registry"}],
        "volumes": [
            {"name": "scratch", "emptyDir": {"sizeLimit": "200Gi"}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}},
        ],
        "containers": [
            {
                "name": "node",
                "volumeMounts": [
                    {"name": "scratch", "mountPath": "/tmp"},  # noqa: S108
                    {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108
                ],
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                    "runAsNonRoot": True,
                },
            }
        ],
    }


@pytest.mark.parametrize("key", [key for key in Pod.model_fields if key not in ("accelerator", "retries")])
def test_each_key_of_a_pod_changes_its_trainjob(key: str) -> None:
    """The step's own retries start the job again; an accelerator's name goes with their number."""
    assert render({key: GPUS[key]})["spec"] != render({})["spec"]
    assert render({"accelerators": 2, "accelerator": "amd.com/gpu"}) != render({"accelerators": 2})


def test_what_is_not_asked_for_is_left_to_the_cluster() -> None:
    manifest = render({}, secrets={"s3": None}, environment=None)
    assert manifest["spec"].keys() == {"runtimeRef", "trainer", "runtimePatches"}
    assert manifest["spec"]["trainer"].keys() == {"image", "command", "numNodes", "numProcPerNode", "env"}
    assert manifest["spec"]["trainer"]["env"] == []
    assert of_the_pod(manifest).keys() == {"securityContext", "containers"}


@pytest.mark.parametrize(
    "pod",
    [{"accelerators": 8}, {"memory": "1Gi"}, {"cpu_limit": "2"}, {"cpu": "500m"}, GPUS],
    ids=["accelerators", "memory", "limit", "cpu", "all"],
)
def test_there_are_requests_wherever_there_are_limits(pod: dict[str, Any]) -> None:
    """Without requests, Trainer takes the number of processes for one."""
    resources = render(pod)["spec"]["trainer"]["resourcesPerNode"]
    assert resources["requests"].keys() >= resources.get("limits", {}).keys()


@pytest.mark.parametrize(
    ("pod", "changes"),
    [
        ({}, {}),
        ({"cpu": "0.5", "memory": "4Gi"}, {"secrets": {"s3": None, "mlflow": None, "hub": None}}),
        (GPUS, {"image_pull_secrets": ["one", "two"]}),
        ({"tolerations": [{"operator": "Exists"}]}, {"environment": None}),
    ],
    ids=["nothing", "CPU", "GPUs", "tolerations"],
)
def test_a_cluster_takes_it(pod: dict[str, Any], changes: dict[str, Any], stub: Stub) -> None:
    stub.statuses = [running(0)]
    assert send(stub, render(pod, **changes)) == 200


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "Train"),
        ("spec.trainer.numProcesses", 2),
        ("spec.podTemplateOverrides", []),
        ("spec.trainer.numNodes", "2"),
        ("spec.runtimeRef.name", "another"),
        ("spec.trainer.env", [{"name": "PET_NNODES", "value": "2"}]),
        ("spec.trainer.resourcesPerNode", {"limit": {"cpu": "1"}}),
        ("spec.runtimePatches.0.manager", "automixalign"),
        ("spec.runtimePatches.0.trainingRuntimeSpec.template.spec.replicatedJobs.0.name", "trainer"),
    ],
)
def test_a_cluster_refuses_what_it_does_not_know(path: str, value: Any, stub: Stub) -> None:
    """The stub can say no."""
    manifest = json.loads(json.dumps(render(GPUS)))
    *parents, last = path.split(".")
    place = manifest
    for part in parents:
        place = place[int(part) if part.isdigit() else part]
    place[last] = value
    assert send(stub, manifest) in (400, 403, 422)
    assert not stub.created


def test_a_field_that_the_api_does_not_have_is_no_trainjob() -> None:
    manifest = render({})
    with pytest.raises(ConfigError, match="has no field for a part of"):
        train_job_manifest.check({**manifest, "spec": {**manifest["spec"], "numNodes": 2}})
    manifest["spec"]["trainer"]["numNodes"] = "2"
    with pytest.raises(ConfigError, match="it makes no TrainJob"):
        train_job_manifest.check(manifest)


# What follows goes through S3.


@pytest.fixture
def bucket(s3: Any) -> str:
    name = f"train-job-{uuid.uuid4().hex}"
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture
def places(
    base_model: Path, two_tasks: Path, two_reference_logps: Path, two_losses: list[Path]
) -> dict[str, Any]:
    return {
        "data": two_tasks,
        "reference_logps": two_reference_logps,
        "losses": two_losses,
        "base_model": base_model,
    }


@pytest.fixture
def small_places(tmp_path: Path) -> dict[str, Any]:
    """Stand in for inputs where nothing is trained."""
    for name in ("data", "reference_logps", "base_model", "losses"):
        files.write_text(tmp_path / "inputs" / name / "file", name)
    found = {name: tmp_path / "inputs" / name for name in ("data", "reference_logps", "base_model")}
    return {**found, "losses": [tmp_path / "inputs" / "losses"]}


def training(output: Path, places: dict[str, Any], **changes: Any) -> GeneralistTraining:
    given = {
        "seed": 1,
        "training": {"batch_size": 8, "learning_rate": 1e-2, "nodes": 2, **changes},
        "budget": {"steps": STEPS},
        "method": {"method": "ama-r", "eta": 0.5},
    }
    settings = GeneralistSettings.model_validate(given)
    return GeneralistTraining(
        settings=settings, **places, output=output / "model", trajectory=output / "log.jsonl"
    )


@pytest.fixture
def on_cluster(stub: Stub, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The environment of a step's pod, and of its nodes; where its trainings go through."""
    storage = f"s3://{bucket}/jobs"
    asked = request({"cpu": "1"}, storage=storage)
    monkeypatch.setenv(TRAIN_JOB, asked.model_dump_json())
    stub.secrets["automixalign-s3"] = {
        key: os.environ[key] for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    }
    stub.config_maps["automixalign-env"] = {
        "AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"],
        "AWS_DEFAULT_REGION": os.environ["AWS_DEFAULT_REGION"],
    }
    with run_step("train_generalist", "AMA-R_task"):
        yield storage


def test_two_nodes_train_what_one_process_trains(
    on_cluster: str,
    stub: Stub,
    places: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    two = train(training(tmp_path / "two", places))
    one = train(training(tmp_path / "one", places, nodes=1))
    clock = {"seconds": 0, "tokens_per_second": 0}
    assert {**one, **clock} == {**two, **clock}
    weights, others = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        assert torch.allclose(tensor, others[name], rtol=0, atol=1e-6), name
    rows, other_rows = (files.read_jsonl(tmp_path / name / "log.jsonl") for name in ("one", "two"))
    assert len(rows) == STEPS
    for row, other in zip(rows, other_rows, strict=True):
        assert row["pairs"] == other["pairs"]
        for key in ("weights", "loss", "excess", "margin"):
            assert row[key] == pytest.approx(other[key], abs=1e-6)
    assert rows[-1]["weights"] != rows[0]["weights"]

    (job,) = stub.created
    name = job["metadata"]["name"]
    assert name.startswith("train-ama-r-task-")
    assert stub.asked[:2] == [f"create {name}", f"get {name}"], "the first look found none"
    assert stub.asked[-1] == f"delete {name}"
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in json.dumps(job)
    said = capfd.readouterr().err
    assert f"TrainJob {name} (namespace {NAMESPACE}) runs on 2 nodes" in said
    assert f"kubectl logs --namespace {NAMESPACE}" in said
    assert not list((tmp_path / "two").glob(".*")), "no scratch is left"

    # A step that is started again finds the result, and needs no cluster.
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    again = train(training(tmp_path / "again", places))
    assert again == two
    for part in ("model/model.safetensors", "model/tokenizer.json", "log.jsonl"):
        assert files.digest(tmp_path / "again" / part) == files.digest(tmp_path / "two" / part)


def test_what_a_node_fails_with_is_the_error_of_the_step(
    on_cluster: str, stub: Stub, places: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster would start the nodes again and again; the step ends the job at the first error."""
    monkeypatch.setenv(TRAIN_JOB, request({}, storage=on_cluster).model_dump_json())
    missing = {**places, "losses": places["losses"][:1]}
    with pytest.raises(CacheError, match="there are no specialist losses of task format"):
        train(training(tmp_path / "out", missing))
    assert not (tmp_path / "out").exists()
    stub.stop()
    assert not stub.killed, "the nodes end when they are asked to"


def finish(exchange: Exchange, folder: Path) -> None:
    """Give back what a first node would have trained."""
    files.write_text(folder / "model" / "weights", "trained")
    files.write_jsonl(folder / "trajectory.jsonl", [{"step": 1}])
    files.write_json(folder / RESULT, {"steps": 1})
    exchange.give_back(folder)


def exchange_of(asked: GeneralistTraining, storage: str) -> Exchange:
    return Exchange.of(pack(asked)[0], storage)


def completing(exchange: Exchange, folder: Path) -> Callable[[], dict[str, Any]]:
    """A look at a job at whose time it becomes complete."""

    def look() -> dict[str, Any]:
        finish(exchange, folder)
        return condition("Complete", "AllJobsCompleted", "jobset completed successfully")

    return look


def test_a_running_job_is_followed_by_a_step_that_is_started_again(
    on_cluster: str,
    stub: Stub,
    small_places: dict[str, Any],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    asked = training(tmp_path / "out", small_places)
    stub.statuses = [running(1)]
    stub.faults["get"] = [(404, "not found")] + [(503, "")] * 4
    with pytest.raises(TrainingError, match=r"answers 503: .*; the TrainJob may go on: start the step again"):
        train_job.run(asked)
    assert "asking again" in capfd.readouterr().err
    assert len(stub.jobs) == 1, "it goes on, and whoever starts the step again will follow it"
    exchange = exchange_of(asked, on_cluster)
    stub.statuses = [running(0), running(1), completing(exchange, tmp_path / "trained")]
    assert train_job.run(asked) == {"steps": 1}
    assert len(stub.created) == 1
    assert "runs already" in capfd.readouterr().err
    assert (asked.output / "weights").read_text() == "trained"
    assert files.read_jsonl(asked.trajectory) == [{"step": 1}]
    stub.stop()
    assert not stub.jobs


@pytest.mark.parametrize(
    ("status", "memory"),
    [(condition("Failed", "FailedJobs", "jobset failed"), None), (running(0), "64Gi")],
    ids=["it has failed", "other pods are asked for"],
)
def test_a_job_that_is_left_over_makes_room_for_another(
    status: dict[str, Any],
    memory: str | None,
    on_cluster: str,
    stub: Stub,
    small_places: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = training(tmp_path / "out", small_places)
    exchange = exchange_of(asked, on_cluster)
    done = completing(exchange, tmp_path / "trained")
    stub.statuses = [lambda: done() if len(stub.created) == 2 else status]
    stub.faults["get"] = [(404, "not found")] + [(500, "")] * 4
    with pytest.raises(TrainingError):
        train_job.run(asked)
    exchange.tell(CacheError("of an earlier attempt"), "0", 1)
    pod = {"cpu": "1", **({"memory": memory} if memory else {})}
    monkeypatch.setenv(TRAIN_JOB, request(pod, storage=on_cluster).model_dump_json())
    assert train_job.run(asked) == {"steps": 1}
    assert len(stub.created) == 2
    limits = stub.created[1]["spec"]["trainer"]["resourcesPerNode"].get("limits", {})
    assert limits.get("memory") == memory
    assert exchange.first_error() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_who_ends_the_step_ends_the_job(
    number: signal.Signals, on_cluster: str, stub: Stub, small_places: dict[str, Any], tmp_path: Path
) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def look() -> dict[str, Any]:
        os.kill(os.getpid(), number)
        return running(1)

    stub.statuses = [running(0), look, running(1)]
    with pytest.raises(SystemExit if number == signal.SIGTERM else KeyboardInterrupt) as left:
        train_job.run(training(tmp_path / "out", small_places))
    if number == signal.SIGTERM:
        assert left.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert stub.asked[-1].startswith("delete ")


@pytest.mark.parametrize(
    ("status", "told", "kind", "message"),
    [
        (
            condition("Failed", "DeadlineExceeded", "too long"),
            [],
            TrainingError,
            r"failed \(DeadlineExceeded\): too",
        ),
        (
            condition("Failed", "FailedJobs", "jobset failed"),
            [(3, TrainingError("one of the processes failed: gone")), (2, StorageError("s3://x is full"))],
            StorageError,
            "^s3://x is full\nthen node 0 failed with TrainingError: one of the processes failed: gone$",
        ),
        (running(1), [(5, ConfigError("no GPU"))], ConfigError, "^no GPU$"),
        (None, [], TrainingError, "was deleted before its end"),
    ],
    ids=["deadline", "first of two", "before the job fails", "deleted"],
)
def test_a_job_that_fails_says_why(
    status: dict[str, Any] | None,
    told: list[tuple[int, AutoMixAlignError]],
    kind: type[Exception],
    message: str,
    on_cluster: str,
    stub: Stub,
    small_places: dict[str, Any],
    tmp_path: Path,
) -> None:
    asked = training(tmp_path / "out", small_places)
    exchange = exchange_of(asked, on_cluster)

    def look() -> dict[str, Any]:
        for nanoseconds, error in told:
            exchange.tell(error, "0", nanoseconds)
        if status is None:
            stub.jobs.clear()
        return status or running(1)

    stub.statuses = [running(0), look, status or running(1)]
    with pytest.raises(kind, match=message):
        train_job.run(asked)
    stub.stop()
    assert not stub.jobs


def test_a_queue_that_holds_a_job_back_is_told(
    on_cluster: str,
    stub: Stub,
    small_places: dict[str, Any],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    asked = training(tmp_path / "out", small_places)
    done = completing(exchange_of(asked, on_cluster), tmp_path / "trained")
    stub.statuses = [condition("Suspended", "Suspended", "TrainJob is suspended"), running(0), done]
    train_job.run(asked)
    said = capfd.readouterr().err
    assert said.index("is suspended, as by a queue") < said.index("waits for its 2 nodes to start")


FORBIDDEN = 'trainjobs.trainer.kubeflow.org is forbidden: User "me" cannot create resource "trainjobs"'


@pytest.mark.parametrize(
    ("verb", "faults", "message"),
    [
        (
            "get",
            [(403, FORBIDDEN)],
            r"does not get .* namespace team-a: trainjobs.* needs a Role to create, get and del",
        ),
        ("create", [(403, FORBIDDEN)], r"does not create .*\(403\); the pod's service account needs a Role"),
        ("create", [(404, "")], r"\(404\); see that the namespace is there; it needs Kubeflow Trainer 2.3"),
        (
            "create",
            [(400, 'unknown field "spec.runtimePatches"')],
            r"runtimePatches.*it needs Kubeflow Trainer 2.3",
        ),
        ("create", [(401, "Unauthorized")], "check the service account's token"),
        ("create", [(422, "spec.x: Invalid value")], r"spec.x: Invalid value \(422\); check 'cluster'"),
    ],
    ids=["get forbidden", "create forbidden", "no Trainer", "old Trainer", "no token", "invalid"],
)
def test_a_cluster_that_does_not_do_it_is_explained(
    verb: str,
    faults: list[tuple[int, str]],
    message: str,
    on_cluster: str,
    stub: Stub,
    small_places: dict[str, Any],
    tmp_path: Path,
) -> None:
    stub.faults[verb] = faults
    with pytest.raises(ConfigError, match=message):
        train_job.run(training(tmp_path / "out", small_places))
    assert not any(call.startswith("delete") for call in stub.asked)


def test_a_runtime_that_is_not_there_is_named(
    on_cluster: str, stub: Stub, small_places: dict[str, Any], tmp_path: Path
) -> None:
    stub.runtimes = {"deepspeed-distributed"}
    with pytest.raises(
        ConfigError, match=r"must be created before .* check 'cluster', and that 'cluster.train_job.runt"
    ):
        train_job.run(training(tmp_path / "out", small_places))


def test_a_server_that_is_away_for_a_while_is_asked_again(
    on_cluster: str, stub: Stub, small_places: dict[str, Any], tmp_path: Path
) -> None:
    asked = training(tmp_path / "out", small_places)
    stub.statuses = [running(1), completing(exchange_of(asked, on_cluster), tmp_path / "trained")]
    stub.faults = {
        "get": [(404, "not found"), (500, "etcdserver: leader changed"), (429, ""), (503, "")],
        "create": [(500, "failed calling webhook"), (504, "")],
    }
    assert train_job.run(asked) == {"steps": 1}
    assert len(stub.created) == 1


def test_a_cluster_that_cannot_be_reached_is_named(
    on_cluster: str, stub: Stub, small_places: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubeconfig = Path(os.environ["KUBECONFIG"])
    kubeconfig.write_text(kubeconfig.read_text().replace(stub.url, "http://127.0.0.1:9"))
    with pytest.raises(TrainingError, match="the Kubernetes API cannot be reached"):
        train_job.run(training(tmp_path / "out", small_places))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="neither a service account here nor a kubeconfig"):
        train_job.run(training(tmp_path / "out", small_places))


def test_errors_of_several_nodes_come_in_their_order(bucket: str) -> None:
    exchange = Exchange(f"s3://{bucket}/trainings/x")
    assert exchange.first_error() is None
    exchange.tell(TrainingError("connection closed"), "0", 1_700_000_000_000_000_002)
    exchange.tell(CacheError("no cache"), "11", 1_700_000_000_000_000_001)
    error = exchange.first_error()
    assert isinstance(error, CacheError)
    assert str(error) == "no cache"
    assert error.__notes__ == ["then node 0 failed with TrainingError: connection closed"]
    exchange.forget_errors()
    assert exchange.first_error() is None


def test_a_pod_asks_its_own_cluster_as_its_service_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("token", "ca.crt", "namespace"):
        (tmp_path / name).write_text(f"the-{name}")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setattr(train_job_server, "_NAMESPACE", tmp_path / "namespace")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    jobs = train_job_server.TrainJobs()
    assert jobs.namespace == "the-namespace"
    used = jobs._api.api_client.configuration
    assert (used.host, used.ssl_ca_cert) == ("https://10.0.0.1:443", str(tmp_path / "ca.crt"))
    assert used.get_api_key_with_prefix("authorization") == "bearer the-token"


def test_several_nodes_need_a_cluster(
    small_places: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TRAIN_JOB, raising=False)
    with pytest.raises(
        ConfigError, match=r"training.nodes: 2 nodes need Kubeflow Trainer.*set training.nodes: 1"
    ):
        train(training(tmp_path, small_places))
    monkeypatch.setenv(TRAIN_JOB, '{"image": "x"}')
    with pytest.raises(ConfigError, match="AMA_TRAIN_JOB is not what this version writes"):
        train(training(tmp_path, small_places))


def test_a_training_is_called_after_what_determines_it(small_places: dict[str, Any], tmp_path: Path) -> None:
    def name(places: dict[str, Any], **changes: Any) -> str:
        return pack(training(tmp_path / "anywhere", places, **changes))[0].id

    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "inputs", moved)
    elsewhere = {
        **{key: moved / key for key in ("data", "reference_logps", "base_model")},
        "losses": [moved / "losses"],
    }
    first = name(small_places)
    assert name(elsewhere) == first, "wherever it lies"
    files.write_text(moved / "base_model" / ".hidden", "x")
    assert name(elsewhere) == first
    assert name(small_places, beta=0.3) != first
    files.write_text(moved / "losses" / "file", "other")
    assert name(elsewhere) != first
    pairs = [f"pair-{number}" for number in range(50)]
    part = SpecialistTraining(
        **training(tmp_path, small_places).model_dump(exclude={"losses"}),
        task="format",
        pair_ids=frozenset(pairs),
    )
    assert pack(part)[0].job.training["pair_ids"] == sorted(pairs)
    with pytest.raises(StorageError, match=r"losses/0: there is no file in .*nowhere"):
        name({**small_places, "losses": [tmp_path / "nowhere"]})


def test_inputs_are_sent_once_and_arrive_whole(
    bucket: str, s3: Any, small_places: dict[str, Any], tmp_path: Path
) -> None:
    storage = f"s3://{bucket}/jobs/"
    for learning_rate in (1e-2, 1e-3):
        asked = training(tmp_path / "out", small_places, learning_rate=learning_rate)
        handover, sources = pack(asked)
        Exchange.of(handover, storage).send(handover, sources)
    keys = [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]]
    assert sum(key.startswith("jobs/files/") for key in keys) == 4, "two trainings share their inputs"
    assert sum(key.endswith("/training.json") for key in keys) == 2
    assert not any(
        str(tmp_path) in s3.get_object(Bucket=bucket, Key=key)["Body"].read().decode() for key in keys
    )
    there = Exchange.of(handover, storage).receive(tmp_path / "node")
    assert isinstance(there, GeneralistTraining)
    assert there.settings == asked.settings
    assert (there.losses[0] / "file").read_text() == "losses"
    assert there.output == tmp_path / "node" / "model"
    damaged = handover.inputs.files["inputs/data/file"].sha256
    s3.put_object(Bucket=bucket, Key=f"jobs/files/{damaged}", Body=b"dada")
    with pytest.raises(StorageError, match="is not what was stored"):
        Exchange.of(handover, storage).receive(tmp_path / "another")


def test_a_node_with_other_code_refuses_to_train(
    bucket: str, small_places: dict[str, Any], tmp_path: Path
) -> None:
    handover, sources = pack(training(tmp_path / "out", small_places))
    older = handover.model_copy(update={"library": "0" * 16})
    exchange = Exchange.of(older, f"s3://{bucket}")
    with pytest.raises(StorageError, match=r"training.json is not there"):
        exchange.receive(tmp_path / "node")
    exchange.send(older, sources)
    with pytest.raises(ConfigError, match="the node runs other code"):
        exchange.receive(tmp_path / "node")
