"""The manifest of a TrainJob: what it holds, and that a stub of the cluster accepts it."""

import copy
import json
import urllib.error
import urllib.request
from typing import Any

import pytest
import yaml

from automixalign.config.cluster import Pod
from automixalign.system.errors import ConfigError
from automixalign.training.nodes import manifest
from tests.training.trainer_stub import NAMESPACE, Stub, request, running

URI = "s3://jobs/here/trainings/ama-r-0"
GPUS = yaml.safe_load("""
cpu: "16"
cpu_limit: "32"
memory: 512Gi
scratch: 200Gi
shared_memory: 64Gi
accelerator: nvidia.com/gpu
accelerators: 8
node_selector: {cloud.google.com/gke-accelerator: nvidia-h100-80gb}
tolerations:
  - {key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}
  - {key: spot, value: "true", effect: NoExecute, toleration_seconds: 60}
timeout_seconds: 86400
""")
TRAINER = yaml.safe_load("""
image: registry.example/automixalign@sha256:0
command: [python, -m, automixalign.training.nodes.node, s3://jobs/here/trainings/ama-r-0]
numNodes: 2
numProcPerNode: 8
env:
  - name: AWS_ACCESS_KEY_ID
    valueFrom: {secretKeyRef: {name: automixalign-s3, key: AWS_ACCESS_KEY_ID, optional: true}}
  - name: AWS_SECRET_ACCESS_KEY
    valueFrom: {secretKeyRef: {name: automixalign-s3, key: AWS_SECRET_ACCESS_KEY, optional: true}}
  - name: AWS_ENDPOINT_URL
    valueFrom: {configMapKeyRef: {name: automixalign-env, key: AWS_ENDPOINT_URL, optional: true}}
  - name: AWS_DEFAULT_REGION
    valueFrom: {configMapKeyRef: {name: automixalign-env, key: AWS_DEFAULT_REGION, optional: true}}
  - {name: OMP_NUM_THREADS, value: "16"}
resourcesPerNode:
  requests: {cpu: "16", memory: 512Gi, nvidia.com/gpu: "8"}
  limits: {cpu: "32", memory: 512Gi, nvidia.com/gpu: "8"}
""")
POD = yaml.safe_load("""
securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
nodeSelector: {cloud.google.com/gke-accelerator: nvidia-h100-80gb}
tolerations:
  - {key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}
  - {key: spot, operator: Equal, value: "true", effect: NoExecute, tolerationSeconds: 60}
imagePullSecrets: [{name: registry}]
volumes:
  - {name: scratch, emptyDir: {sizeLimit: 200Gi}}
  - {name: shared-memory, emptyDir: {medium: Memory, sizeLimit: 64Gi}}
containers:
  - name: node
    volumeMounts: [{name: scratch, mountPath: /tmp}, {name: shared-memory, mountPath: /dev/shm}]
    securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, runAsNonRoot: true}
""")


def render(pod: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return manifest.render(request(pod, **changes), "train-ama-r-0", URI, nodes=2, processes=8)


def pod_of(job: dict[str, Any]) -> dict[str, Any]:
    (patch,) = job["spec"]["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    spec: dict[str, Any] = replicated["template"]["spec"]["template"]["spec"]
    return spec


def send(stub: Stub, job: dict[str, Any]) -> int:
    """The status that the cluster answers to a TrainJob."""
    path = f"apis/trainer.kubeflow.org/v1alpha1/namespaces/{NAMESPACE}/trainjobs?fieldValidation=Strict"
    call = urllib.request.Request(f"{stub.url}/{path}", json.dumps(job).encode(), method="POST")  # noqa: S310
    try:
        with urllib.request.urlopen(call) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_trainjob_holds_all_that_is_requested() -> None:
    job = render(GPUS, image_pull_secrets=["registry"])
    assert job["metadata"]["name"] == "train-ama-r-0"
    assert job["metadata"]["labels"] == {"app.kubernetes.io/part-of": "automixalign"}
    runtime = {
        "apiGroup": "trainer.kubeflow.org",
        "kind": "ClusterTrainingRuntime",
        "name": "torch-distributed",
    }
    assert job["spec"]["runtimeRef"] == runtime
    assert job["spec"]["activeDeadlineSeconds"] == 86400
    assert job["spec"]["trainer"] == TRAINER
    assert pod_of(job) == POD


@pytest.mark.parametrize("key", [key for key in Pod.model_fields if key not in ("accelerator", "retries")])
def test_each_key_of_a_pod_changes_its_trainjob(key: str) -> None:
    """The stage's own retries start the job again; an accelerator's name goes with their number."""
    assert render({key: GPUS[key]})["spec"] != render({})["spec"]
    assert render({"accelerators": 2, "accelerator": "amd.com/gpu"}) != render({"accelerators": 2})


def test_the_cluster_chooses_what_is_not_requested() -> None:
    job = render({}, secrets={"s3": None}, environment=None)
    assert job["spec"].keys() == {"runtimeRef", "trainer", "runtimePatches"}
    assert job["spec"]["trainer"].keys() == {"image", "command", "numNodes", "numProcPerNode", "env"}
    assert job["spec"]["trainer"]["env"] == []
    assert pod_of(job).keys() == {"securityContext", "containers"}


@pytest.mark.parametrize(
    "pod",
    [{"accelerators": 8}, {"memory": "1Gi"}, {"cpu_limit": "2"}, {"cpu": "500m"}, GPUS],
    ids=["accelerators", "memory", "limit", "cpu", "all"],
)
def test_every_limit_has_a_request(pod: dict[str, Any]) -> None:
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
def test_a_cluster_accepts_it(pod: dict[str, Any], changes: dict[str, Any], stub: Stub) -> None:
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
def test_the_stub_refuses_what_a_cluster_refuses(path: str, value: Any, stub: Stub) -> None:
    job = copy.deepcopy(render(GPUS))
    *parents, last = path.split(".")
    parent: Any = job
    for part in parents:
        parent = parent[int(part) if part.isdigit() else part]
    parent[last] = value
    assert send(stub, job) in (400, 403, 422)
    assert not stub.created


def test_a_manifest_with_an_unknown_field_is_refused() -> None:
    job = render({})
    with pytest.raises(ConfigError, match="has no field for a part of"):
        manifest.check({**job, "spec": {**job["spec"], "numNodes": 2}})
    job["spec"]["trainer"]["numNodes"] = "2"
    with pytest.raises(ConfigError, match="these settings make no TrainJob"):
        manifest.check(job)
