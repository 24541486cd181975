"""A cluster with Kubeflow Trainer for the tests, which no live one was there for.

It is a real HTTP server for the few calls that a TrainJob needs, and it *runs* the job: a process a node, with
the command and the environment of the manifest, and what Trainer's runtime adds. It refuses as a cluster does:

- every field of a TrainJob has to be in the API's models (the server does so under `fieldValidation=Strict`);
- what Trainer's webhook and the rules of its CRD say of names, runtimes, patches and reserved variables;
- the pod that comes out of runtime and patches has to be one, by the schema of Kubernetes.

A job that is deleted keeps its name until its nodes have ended, as under foreground deletion. A node that fails
does not make the job fail: Kubernetes would start it again and again, for some ten minutes.
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
import yaml
from kubeflow_trainer_api import models

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


class RefusedError(Exception):
    """A request that the server answers with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Stub:
    """The cluster's content, what it was asked, and how it behaves.

    Attributes:
        secrets, config_maps: name -> key -> value, in the namespace.
        faults: verb -> the next errors, status and message; an empty message is no JSON.
        statuses: where no node is run, what the next looks at a job see, the last of them for good; a callable
            is called first.
        asked: verb and name of every request that was met.
        created: every TrainJob as it came.
        killed: the nodes that did not end when they were asked to.
        broken: what went wrong in the stub itself.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""
        self.secrets: dict[str, dict[str, str]] = {}
        self.config_maps: dict[str, dict[str, str]] = {}
        self.runtimes = {"torch-distributed"}
        self.faults: dict[str, list[tuple[int, str]]] = {}
        self.statuses: list[Document | Callable[[], Document]] = []
        self.asked: list[str] = []
        self.created: list[Document] = []
        self.jobs: dict[str, Document] = {}
        self.killed: list[str] = []
        self.broken: list[str] = []
        self._nodes: dict[str, list[subprocess.Popen[bytes]]] = {}

    def answer(self, method: str, url: str, body: bytes) -> Document:
        """What the server says.

        Raises:
            RefusedError: with the status and message for a request that cannot be met.
        """
        path, _, query = url.partition("?")
        options = dict(urllib.parse.parse_qsl(query))
        found = _PATH.fullmatch(path)
        verb = {"POST": "create", "GET": "get", "DELETE": "delete"}.get(method)
        if not found or verb is None or (verb == "create") == bool(found[1]):
            raise RefusedError(404, f"the server could not find the requested resource: {method} {path}")
        if faults := self.faults.get(verb):
            raise RefusedError(*faults.pop(0))
        answer = (
            self._create(json.loads(body), options)
            if verb == "create"
            else getattr(self, f"_{verb}")(found[1], options)
        )
        self.asked.append(f"{verb} {answer['metadata']['name']}")
        return answer

    def _create(self, job: Document, options: Document) -> Document:
        if options.get("fieldValidation") != "Strict":
            raise RefusedError(400, "the stub wants to be asked to be strict")
        if _known(job) != job:
            raise RefusedError(400, "strict decoding error: unknown field")
        name = job["metadata"]["name"]
        _must(re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name), 422, "metadata.name must match RFC 1035")
        # The name of a pod is also its host's.
        _must(len(f"{name}-node-0-0-abcde") <= 63, 422, "the names of pods are too long")
        runtime = job["spec"]["runtimeRef"]
        denied = 'admission webhook "validator.trainjob.trainer.kubeflow.org" denied the request: '
        if (runtime["kind"], runtime["name"]) not in {
            ("ClusterTrainingRuntime", each) for each in self.runtimes
        }:
            text = "specified clusterTrainingRuntime must be created before the TrainJob is created"
            raise RefusedError(403, denied + text)
        names = {variable["name"] for variable in job["spec"]["trainer"]["env"]}
        _must(not names & _RESERVED, 403, f"{denied}must not have reserved envs")
        pod = _pod(copy.deepcopy(job), denied)
        if name in self.jobs:
            raise RefusedError(409, f'trainjobs.trainer.kubeflow.org "{name}" already exists')
        self.created.append(copy.deepcopy(job))
        job["metadata"] |= {"uid": str(uuid.uuid4()), "namespace": NAMESPACE}
        self.jobs[name] = job
        if not self.statuses:
            self._nodes[name] = self._run(job, pod["spec"]["containers"][0])
        return job

    def _get(self, name: str, options: Document) -> Document:
        job = self._find(name)
        if name in self._nodes:
            job["status"] = self._status(self._nodes[name])
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
        if name not in self.jobs:
            raise RefusedError(404, f'trainjobs.trainer.kubeflow.org "{name}" not found')
        return self.jobs[name]

    def _run(self, job: Document, container: Document) -> list["subprocess.Popen[bytes]"]:
        trainer, port = job["spec"]["trainer"], _free_port()
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
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
            log = self.folder / f"node-{rank}.log"
            with log.open("wb") as out:
                nodes.append(
                    subprocess.Popen(
                        container["command"],
                        env={**environment, "PET_NODE_RANK": str(rank)},
                        cwd=self.folder,
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        return nodes

    def _values(self, variables: Sequence[Document]) -> dict[str, str]:
        values = {}
        for variable in variables:
            (kind, source), *_ = variable.get("valueFrom", {"value": variable}).items()
            store = {"secretKeyRef": self.secrets, "configMapKeyRef": self.config_maps}.get(kind)
            if store is None:
                values[variable["name"]] = variable["value"]
            elif source["key"] in store.get(source["name"], {}):
                values[variable["name"]] = store[source["name"]][source["key"]]
            else:
                assert source["optional"]
        return values

    def _status(self, nodes: "Sequence[subprocess.Popen[bytes]]") -> Document:
        codes = [node.poll() for node in nodes]
        if all(code == 0 for code in codes):
            return condition("Complete", "AllJobsCompleted", "jobset completed successfully")
        return running(1)

    def _end(self, name: str) -> None:
        """As a node's machine does: the first process is asked, and all are killed after a while."""
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
    """What the API's models know of a TrainJob, as it would come back."""
    try:
        model = models.TrainerV1alpha1TrainJob.from_dict(job)
        return json.loads(json.dumps(model.to_dict(), default=lambda time: f"{time:%Y-%m-%dT%H:%M:%SZ}"))
    except ValueError as error:
        raise RefusedError(422, f"TrainJob is invalid: {error}") from error


def _pod(job: Document, denied: str) -> Document:
    """The pod of a node: the runtime's, patched, with what the trainer says."""
    pod = copy.deepcopy(_RUNTIME["template"]["spec"]["template"])
    (container,) = pod["spec"]["containers"]
    managers = [patch["manager"] for patch in job["spec"]["runtimePatches"]]
    for patch, manager in zip(job["spec"]["runtimePatches"], managers, strict=True):
        domain, _, path = manager.partition("/")
        _must(path and re.fullmatch("[a-z0-9.-]+", domain), 422, "manager must be a domain-prefixed path")
        for replicated in patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]:
            _must(replicated["name"] == "node", 403, f"{denied}must not have a job that is not in the runtime")
            template = replicated["template"]["spec"]["template"]
            _must(template.get("metadata", {}).keys() <= {"labels", "annotations"}, 422, "metadata")
            pod["metadata"] = template.get("metadata", {})
            for each in template["spec"].pop("containers"):
                _must(
                    each["name"] == "node", 403, f"{denied}must not have a container that is not in the runtime"
                )
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
    """A cluster on 127.0.0.1; `folder/kubeconfig` leads to it, and its nodes have files and logs there."""
    stub = Stub(folder)

    class Handler(BaseHTTPRequestHandler):
        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            try:
                status, answer = 200, stub.answer(self.command, self.path, body)
            except RefusedError as error:
                status, answer = error.status, {"kind": "Status", "status": "Failure", "message": str(error)}
            except Exception as error:
                stub.broken.append(repr(error))
                raise
            text = b"page not found" if answer.get("message") == "" else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_DELETE = do  # noqa: N815  http.server's names

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    stub.url = f"http://127.0.0.1:{server.server_address[1]}"
    context = {"cluster": "here", "user": "me", "namespace": NAMESPACE}
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": stub.url}}],
        "users": [{"name": "me", "user": {}}],
        "contexts": [{"name": "here", "context": context}],
    }
    (folder / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    try:
        yield stub
    finally:
        stub.stop()
        server.shutdown()
        thread.join()
        server.server_close()
    assert not stub.broken
