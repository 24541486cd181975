"""The manifest of a training's TrainJob, for Kubeflow Trainer 2.3.

Older versions have another API: no `runtimePatches` before 2.2, and others in 2.2. The runtime sets everything
else. Runtimes that start PyTorch call the container and the replicated job `node`; Trainer itself sets
PET_NNODES, PET_NPROC_PER_NODE, PET_NODE_RANK, PET_MASTER_ADDR and PET_MASTER_PORT there.
"""

import hashlib
import json
import math
from typing import Any

from automixalign.config.cluster import ENVIRONMENT_KEYS, SECRET_KEYS, Pod, TrainJobRequest
from automixalign.system.errors import ConfigError

Document = dict[str, Any]

DIGEST = "automixalign/manifest"
"""Annotation with the digest of the spec: it shows whether an existing TrainJob is the requested one."""
_NODE = "node"
_PART = {"app.kubernetes.io/part-of": "automixalign"}
_NO_MESH = {"sidecar.istio.io/inject": "false"}
"""A proxy beside each node would intercept the processes' connections, and never end."""


def render(request: TrainJobRequest, name: str, uri: str, nodes: int, processes: int) -> Document:
    """The TrainJob that runs a training on several nodes.

    Args:
        request: what the stage's pod knows of the job.
        name: name of the TrainJob, a DNS label of at most 48 characters; the pods' names begin with it.
        uri: where the nodes find the training (`handover`).
        nodes: number of pods.
        processes: number of processes in each pod.

    Raises:
        ConfigError: the API lacks a field of the manifest.
    """
    trainer: Document = {
        "image": request.image,
        "command": ["python", "-m", "automixalign.training.nodes.node", uri],
        "numNodes": nodes,
        "numProcPerNode": processes,
        "env": _environment(request),
    }
    if resources := _resources(request.pod):
        trainer["resourcesPerNode"] = resources
    spec: Document = {
        "runtimeRef": {
            "apiGroup": "trainer.kubeflow.org",
            "kind": "ClusterTrainingRuntime",
            "name": request.runtime,
        },
        "trainer": trainer,
        "runtimePatches": [_patch(request)],
    }
    if request.pod.timeout_seconds:
        spec["activeDeadlineSeconds"] = request.pod.timeout_seconds
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
    return check(
        {
            "apiVersion": "trainer.kubeflow.org/v1alpha1",
            "kind": "TrainJob",
            "metadata": {"name": name, "labels": _PART, "annotations": {DIGEST: digest}},
            "spec": spec,
        }
    )


def check(manifest: Document) -> Document:
    """Check a TrainJob against the API's models; return it.

    Raises:
        ConfigError: a field is unknown or of another type.
    """
    from kubeflow_trainer_api import models

    try:
        parsed = models.TrainerV1alpha1TrainJob.from_dict(manifest).to_dict()
    except ValueError as error:
        raise ConfigError(f"cluster: these settings make no TrainJob: {error}") from error
    if parsed != manifest:  # the models drop unknown fields
        raise ConfigError(f"cluster: the API of TrainJobs has no field for a part of {json.dumps(manifest)}")
    return manifest


def _environment(request: TrainJobRequest) -> list[Document]:
    """The variables with which a node reaches S3. It needs neither a hub nor MLflow, which the stage serves."""
    sources = {
        "secretKeyRef": (request.secrets.s3, SECRET_KEYS["s3"]),
        "configMapKeyRef": (request.environment, [key for key in ENVIRONMENT_KEYS if key.startswith("AWS_")]),
    }
    variables: list[Document] = [
        {"name": key, "valueFrom": {kind: {"name": name, "key": key, "optional": True}}}
        for kind, (name, keys) in sources.items()
        if name
        for key in keys
    ]
    if request.pod.cpu:
        # Of the whole node, whose processes share them. torch would count the machine's cores.
        threads = max(1, math.floor(_cores(request.pod.cpu)))
        variables.append({"name": "OMP_NUM_THREADS", "value": str(threads)})
    return variables


def _cores(cpu: str) -> float:
    return float(cpu[:-1]) / 1000 if cpu.endswith("m") else float(cpu)


def _resources(pod: Pod) -> Document:
    limits = {"cpu": pod.cpu_limit, "memory": pod.memory}
    if pod.accelerators:
        limits[pod.accelerator] = str(pod.accelerators)
    # Without requests, Kubernetes uses the limits, but Trainer starts one process a node.
    requests = {**limits, "cpu": pod.cpu or pod.cpu_limit}
    both = {
        kind: {key: value for key, value in amounts.items() if value}
        for kind, amounts in (("requests", requests), ("limits", limits))
    }
    return {kind: amounts for kind, amounts in both.items() if amounts}


def _patch(request: TrainJobRequest) -> Document:
    pod = request.pod
    volumes, mounts = [], []
    for name, path, size, medium in (
        ("scratch", "/tmp", pod.scratch, {}),  # noqa: S108  a pod's own
        ("shared-memory", "/dev/shm", pod.shared_memory, {"medium": "Memory"}),  # noqa: S108
    ):
        if size:
            volumes.append({"name": name, "emptyDir": {**medium, "sizeLimit": size}})
            mounts.append({"name": name, "mountPath": path})
    container = {
        "name": _NODE,
        "volumeMounts": mounts,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
        },
    }
    spec = {
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "nodeSelector": pod.node_selector,
        "tolerations": [_toleration(each.model_dump(exclude_none=True)) for each in pod.tolerations],
        "imagePullSecrets": [{"name": name} for name in request.image_pull_secrets],
        "volumes": volumes,
        "containers": [_without_empty(container)],
    }
    metadata = {"labels": {**_PART, **_NO_MESH}, "annotations": _NO_MESH}
    template = {"metadata": metadata, "spec": _without_empty(spec)}
    job = {"name": _NODE, "template": {"spec": {"template": template}}}
    return {
        "manager": "automixalign/train-job",
        "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [job]}}},
    }


def _toleration(toleration: Document) -> Document:
    seconds = toleration.pop("toleration_seconds", None)
    return toleration if seconds is None else {**toleration, "tolerationSeconds": seconds}


def _without_empty(document: Document) -> Document:
    return {key: value for key, value in document.items() if value not in ({}, [])}
