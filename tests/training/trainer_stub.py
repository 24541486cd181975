"""A stub of a cluster with Kubeflow Trainer.

It is an HTTP server for the requests that a TrainJob needs, and it *runs* the job: a process for each node,
with the command and environment of the manifest and of Trainer's runtime. It refuses what a cluster refuses:

- a field that is not in the API's models (as the server does under `fieldValidation=Strict`);
- names, runtimes, patches and reserved variables, by the rules of Trainer's webhook and CRD;
- a pod, made of runtime and patches, that does not match the schema of Kubernetes.

A deleted job keeps its name until its nodes have ended, as under foreground deletion. A node that fails does
not make the job fail: Kubernetes restarts it for some ten minutes.
"""

import copy
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import kubernetes_validate
from kubeflow_trainer_api import models

from automixalign.config.cluster import TrainJobRequest

Document = dict[str, Any]
NAMESPACE = "team-a"
_PATH = re.compile(rf"/apis/trainer\.kubeflow\.org/v1alpha1/namespaces/{NAMESPACE}/trainjobs(?:/([^/]+))?")
_RESERVED = {"PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT"}
_RUNTIME = {
    "name": "node",
    "template": {
        "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
        "spec": {"template": {"spec": {"containers": [{"name": "node", "image": "pytorch/pytorch"}]}}},
    },
}
"""The replicated job of Trainer's own `torch-distributed`."""
_GRACE_SECONDS = 20
_KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: local
clusters: [{{name: local, cluster: {{server: "{url}"}}}}]
users: [{{name: me, user: {{}}}}]
contexts: [{{name: local, context: {{cluster: local, user: me, namespace: {namespace}}}}}]
"""


def request(pod: Document, **changes: Any) -> TrainJobRequest:
    """What a stage's pod knows of its TrainJob."""
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


class RefusedError(Exception):
    """A request that the server answers with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Stub:
    """The cluster's content, its requests, and its behaviour.

    Attributes:
        secrets, config_maps: name -> key -> value, in the namespace.
        faults: verb -> the next errors, status and message; an empty message is no JSON.
        statuses: if set, no node runs; the next requests see these statuses, and the last one repeats. A
            callable returns its status.
        requests: verb and name of every successful request.
        created: every TrainJob as it was sent.
        killed: the nodes that SIGTERM did not end.
        errors: the errors of the stub itself.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""
        self.secrets: dict[str, dict[str, str]] = {}
        self.config_maps: dict[str, dict[str, str]] = {}
        self.runtimes = {"torch-distributed"}
        self.faults: dict[str, list[tuple[int, str]]] = {}
        self.statuses: list[Document | Callable[[], Document]] = []
        self.requests: list[str] = []
        self.created: list[Document] = []
        self.jobs: dict[str, Document] = {}
        self.killed: list[str] = []
        self.errors: list[str] = []
        self._nodes: dict[str, list[subprocess.Popen[bytes]]] = {}

    def answer(self, method: str, url: str, body: bytes) -> Document:
        """The answer to a request.

        Raises:
            RefusedError: the server refuses it.
        """
        path, _, query = url.partition("?")
        options = dict(urllib.parse.parse_qsl(query))
        match = _PATH.fullmatch(path)
        verb = {"POST": "create", "GET": "get", "DELETE": "delete"}.get(method)
        if not match or verb is None or (verb == "create") == bool(match[1]):
            raise RefusedError(404, f"the server could not find the requested resource: {method} {path}")
        if faults := self.faults.get(verb):
            raise RefusedError(*faults.pop(0))
        subject = json.loads(body) if verb == "create" else match[1]
        answer: Document = getattr(self, f"_{verb}")(subject, options)
        self.requests.append(f"{verb} {answer['metadata']['name']}")
        return answer

    def _create(self, job: Document, options: Document) -> Document:
        _must(options.get("fieldValidation") == "Strict", 400, "the stub needs fieldValidation=Strict")
        _must(_known(job) == job, 400, "strict decoding error: unknown field")
        name = job["metadata"]["name"]
        _must(re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name), 422, "metadata.name must match RFC 1035")
        # The name of a pod is also its host's.
        _must(len(f"{name}-node-0-0-abcde") <= 63, 422, "the names of pods are too long")
        runtime = job["spec"]["runtimeRef"]
        denied = 'admission webhook "validator.trainjob.trainer.kubeflow.org" denied the request: '
        exists = runtime["kind"] == "ClusterTrainingRuntime" and runtime["name"] in self.runtimes
        text = "specified clusterTrainingRuntime must be created before the TrainJob is created"
        _must(exists, 403, denied + text)
        names = {variable["name"] for variable in job["spec"]["trainer"]["env"]}
        _must(not names & _RESERVED, 403, f"{denied}must not have reserved envs")
        pod = _pod(copy.deepcopy(job), denied)
        _must(name not in self.jobs, 409, f'trainjobs.trainer.kubeflow.org "{name}" already exists')
        self.created.append(copy.deepcopy(job))
        job["metadata"] |= {"uid": str(uuid.uuid4()), "namespace": NAMESPACE}
        self.jobs[name] = job
        if not self.statuses:
            self._nodes[name] = self._run(job, pod["spec"]["containers"][0])
        return job

    def _get(self, name: str, options: Document) -> Document:
        job = self._find(name)
        if name in self._nodes:
            ended = all(node.poll() == 0 for node in self._nodes[name])
            complete = condition("Complete", "AllJobsCompleted", "jobset completed successfully")
            job["status"] = complete if ended else running(1)
        else:
            status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
            job["status"] = status() if callable(status) else status
        assert _known(job) == job
        return job

    def _delete(self, name: str, options: Document) -> Document:
        assert options == {"propagationPolicy": "Foreground"}
        job = self._find(name)
        if "deletionTimestamp" not in job["metadata"]:
            job["metadata"]["deletionTimestamp"] = "2026-01-01T12:00:00Z"
            threading.Thread(target=self._end, args=(name,)).start()
        return job

    def _find(self, name: str) -> Document:
        _must(name in self.jobs, 404, f'trainjobs.trainer.kubeflow.org "{name}" not found')
        return self.jobs[name]

    def _run(self, job: Document, container: Document) -> list["subprocess.Popen[bytes]"]:
        trainer, port = job["spec"]["trainer"], _free_port()
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),
            "HF_HUB_OFFLINE": "1",
            **self._values(container["env"]),
            "PET_NNODES": str(trainer["numNodes"]),
            "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(port),
            "GLOO_SOCKET_IFNAME": "lo",  # all nodes are this machine
        }
        nodes = []
        for rank in range(trainer["numNodes"]):
            with (self.folder / f"node-{rank}.log").open("wb") as log:
                node = subprocess.Popen(
                    container["command"],
                    env={**environment, "PET_NODE_RANK": str(rank)},
                    cwd=self.folder,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            nodes.append(node)
        return nodes

    def _values(self, variables: Sequence[Document]) -> dict[str, str]:
        values = {}
        for variable in variables:
            if "value" in variable:
                values[variable["name"]] = variable["value"]
                continue
            ((kind, source),) = variable["valueFrom"].items()
            content = {"secretKeyRef": self.secrets, "configMapKeyRef": self.config_maps}[kind]
            if source["key"] in content.get(source["name"], {}):
                values[variable["name"]] = content[source["name"]][source["key"]]
            else:
                assert source["optional"]
        return values

    def _end(self, name: str) -> None:
        """End the nodes as Kubernetes does: SIGTERM to the first process, SIGKILL to all after a while."""
        nodes = self._nodes.pop(name, [])
        for node in nodes:
            node.terminate()
        give_up = time.monotonic() + _GRACE_SECONDS
        for number, node in enumerate(nodes):
            try:
                node.wait(max(0.0, give_up - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.killed.append(f"{name} {number}")
            with suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
            node.wait()
        del self.jobs[name]

    def stop(self) -> None:
        """End every node, and wait until it has ended."""
        for name in list(self.jobs):
            with suppress(RefusedError):
                self._delete(name, {"propagationPolicy": "Foreground"})
        while self.jobs:
            time.sleep(0.05)


def condition(kind: str, reason: str, message: str) -> Document:
    """The status of a job with one condition."""
    facts = {"reason": reason, "message": message, "lastTransitionTime": "2026-01-01T12:00:00Z"}
    return {"conditions": [{"type": kind, "status": "True", **facts}]}


def running(ready: int) -> Document:
    """The status of a job whose nodes run, or do not run yet."""
    counts = {"ready": ready, "active": 1, "succeeded": 0, "failed": 0, "suspended": 0}
    return {"jobsStatus": [{"name": "node", **counts}]}


def _known(job: Document) -> Document:
    """The fields of a TrainJob that the API's models know."""
    try:
        model = models.TrainerV1alpha1TrainJob.from_dict(job)
        return json.loads(json.dumps(model.to_dict(), default=lambda time: f"{time:%Y-%m-%dT%H:%M:%SZ}"))
    except ValueError as error:
        raise RefusedError(422, f"TrainJob is invalid: {error}") from error


def _pod(job: Document, denied: str) -> Document:
    """The pod of a node: that of the runtime, with the patches and the trainer's fields."""
    pod = copy.deepcopy(_RUNTIME["template"]["spec"]["template"])
    (container,) = pod["spec"]["containers"]
    for patch in job["spec"]["runtimePatches"]:
        domain, _, path = patch["manager"].partition("/")
        _must(path and re.fullmatch("[a-z0-9.-]+", domain), 422, "manager must be a domain-prefixed path")
        for replicated in patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]:
            _must(replicated["name"] == "node", 403, f"{denied}must not have a job that is not in the runtime")
            template = replicated["template"]["spec"]["template"]
            _must(template.get("metadata", {}).keys() <= {"labels", "annotations"}, 422, "metadata")
            pod["metadata"] = template.get("metadata", {})
            for each in template["spec"].pop("containers"):
                unknown = f"{denied}must not have a container that is not in the runtime"
                _must(each["name"] == "node", 403, unknown)
                _must("env" not in each, 403, f"{denied}must not have envs for the node container")
                container.update(each)
            pod["spec"].update(template["spec"])
    trainer = job["spec"]["trainer"]
    container.update({key: trainer[key] for key in ("image", "command", "env")})
    container["resources"] = trainer.get("resourcesPerNode", {})
    whole = {"apiVersion": "v1", "kind": "Pod", **pod}
    try:
        kubernetes_validate.validate(whole, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as error:
        raise RefusedError(422, f"the pod is invalid: {error}") from error
    return whole


def _must(holds: object, status: int, message: str) -> None:
    if not holds:
        raise RefusedError(status, message)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def trainer_stub(folder: Path) -> Iterator[Stub]:
    """A cluster on 127.0.0.1. `folder` gets its kubeconfig, and the files and logs of its nodes."""
    stub = Stub(folder)

    class Handler(BaseHTTPRequestHandler):
        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            try:
                status, answer = 200, stub.answer(self.command, self.path, body)
            except RefusedError as error:
                status, answer = error.status, {"kind": "Status", "status": "Failure", "message": str(error)}
            except Exception as error:
                stub.errors.append(repr(error))
                raise
            text = b"page not found" if answer.get("message") == "" else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_DELETE = do  # noqa: N815  http.server's names

        def log_message(self, *arguments: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    stub.url = f"http://127.0.0.1:{server.server_address[1]}"
    (folder / "kubeconfig").write_text(_KUBECONFIG.format(url=stub.url, namespace=NAMESPACE))
    try:
        yield stub
    finally:
        stub.stop()
        server.shutdown()
        thread.join()
        server.server_close()
    assert not stub.errors
