"""A Kubeflow Pipelines server for the tests, which no live one was there for.

It is a real HTTP server, and it is held to kfp's own packages, so that it cannot drift from them:

- paths, query parameters, and the types of bodies and answers are those of kfp_server_api's operations;
- every body is checked against its model, field by field, and a field that the model does not have is refused;
- every answer is made of models, checked in the same way, and must come back as it was;
- an uploaded package must be one that kfp's own loader takes, and a run's parameters those of the package.

What the models do not say follows the source of the 2.17 server: a run's tasks are all nodes of its workflow
(drivers, executors, loops) in no order, one that has not ended ends in the year 1, and none has an error.
"""

import email.parser
import json
import re
import ssl
import sys
import threading
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any, NamedTuple

import kfp_server_api as api
import yaml
from google.protobuf import json_format
from kfp import components
from kfp.pipeline_spec import pipeline_spec_pb2

NEVER = datetime(1, 1, 1, tzinfo=UTC)
START = datetime(2026, 1, 1, 12, tzinfo=UTC)
_NATIVE = {"str": str, "int": int, "bool": bool, "float": (int, float), "datetime": str, "object": object}
_OF_THE_CLIENT = {"async_req", "_preload_content", "_request_timeout", "_return_http_data_only"}
_WHOLE = ("automixalign-x7k2p", "root", "for-loop-1", "iteration-iterations(0:0)", "iteration-item")
_WHOLE_DRIVERS = ("root-driver", "iteration-driver")
_GRPC_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6}


class RefusedError(Exception):
    """A request that the server answers with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Task(NamedTuple):
    """A step of the DAG in a look at a run."""

    name: str
    state: str
    error: str = ""
    seconds: float = 7.5


class Look(NamedTuple):
    """What a client sees when it looks at a run. A task keeps its place in the list from look to look."""

    state: str
    tasks: Sequence[Task] = ()
    error: str = ""


class Request(NamedTuple):
    """What a client asked."""

    operation: str
    query: dict[str, str]
    headers: Mapping[str, str]


class Operation(NamedTuple):
    """An operation of the API, as kfp_server_api calls it."""

    method: str
    path: "re.Pattern[str]"
    query: frozenset[str]
    body: str | None
    answer: str


class _Recorder(api.ApiClient):  # type: ignore[misc]
    """Takes down what an operation would send."""

    def call_api(self, resource_path: str, method: str, *arguments: Any, **named: Any) -> None:
        self.called = (resource_path, method, arguments[1], named["body"], named["response_type"])


def operation(service: Any, name: str) -> Operation:
    """What kfp_server_api knows of an operation."""
    recorder = _Recorder()
    method = getattr(service(recorder), name)
    types = dict(re.findall(r":type (\w+): (\w+)", method.__doc__))
    given = {key: f"<{key}>" for key in types if key not in _OF_THE_CLIENT}
    method(**given)
    path, verb, query, body, answer = recorder.called
    pattern = "".join(
        f"(?P<{part[1:-1]}>[^/:]+)" if part.startswith("{") else re.escape(part)
        for part in re.split(r"(\{\w+\})", path)
    )
    body_type = next((types[key] for key, value in given.items() if value == body), None)
    return Operation(verb, re.compile(pattern), frozenset(key for key, _ in query), body_type, answer)


def read(data: Any, kind: str, where: str = "body") -> Any:
    """A model from JSON that has to be of its type in every field.

    Raises:
        RefusedError: it is not.
    """
    _check(data, kind, where)
    return api.ApiClient().deserialize(SimpleNamespace(data=json.dumps(data)), kind)


def write(model: Any, kind: str) -> bytes:
    """The JSON of a model, which has to come back as the same model."""
    data = api.ApiClient().sanitize_for_serialization(model)
    assert read(data, kind, kind) == model
    return json.dumps(data).encode()


def _check(data: Any, kind: str, where: str) -> None:
    if of := re.fullmatch(r"list\[(.*)\]", kind):
        _must(isinstance(data, list), where, kind)
        for number, item in enumerate(data):
            _check(item, of[1], f"{where}.{number}")
    elif of := re.fullmatch(r"dict\(str, (.*)\)", kind):
        _must(isinstance(data, dict), where, kind)
        for key, item in data.items():
            _check(item, of[1], f"{where}.{key}")
    elif kind in _NATIVE:
        _must(isinstance(data, _NATIVE[kind]) and (kind in ("bool", "object") or data is not True), where, kind)
        if kind == "datetime":
            datetime.fromisoformat(data)
    elif values := getattr(getattr(api.models, kind), "allowable_values", None):
        _must(data in values, where, f"one of {values}")
    else:
        model = getattr(api.models, kind)
        types = {key: model.openapi_types[name] for name, key in model.attribute_map.items()}
        _must(isinstance(data, dict), where, kind)
        for key, item in data.items():
            _must(key in types, f"{where}.{key}", f"a field of {kind}")
            _check(item, types[key], f"{where}.{key}")


def _must(holds: bool, where: str, what: str) -> None:
    if not holds:
        raise RefusedError(400, f"{where} is not {what}")


class Stub:
    """The server's content, what it was asked, and what it will say.

    Attributes:
        looks: what the next looks at a run see, the last of them for good; an HTTP status instead is an error,
            and a callable is called first.
        token: the only one that is let in, if any.
        refusals: operation -> status and message of the error it gives.
        multi_user: whether a namespace has to be named.
        prefix: the path before the API; anything else is answered with a page.
    """

    def __init__(self) -> None:
        self.looks: list[Look | int | Callable[[], Look | int]] = [Look("SUCCEEDED")]
        self.token: str | None = None
        self.refusals: dict[str, tuple[int, str]] = {}
        self.multi_user = False
        self.prefix = ""
        self.url = ""
        self.requests: list[Request] = []
        self.experiments: dict[str, Any] = {}
        self.pipelines: dict[str, Any] = {}
        self.versions: dict[str, Any] = {}
        self.packages: dict[str, str] = {}
        self.runs: dict[str, Any] = {}
        self.faults: list[str] = []
        services = {
            api.HealthzServiceApi: ["healthz_service_get_healthz"],
            api.ExperimentServiceApi: [
                "experiment_service_list_experiments",
                "experiment_service_create_experiment",
            ],
            api.PipelineServiceApi: [
                "pipeline_service_list_pipelines",
                "pipeline_service_create_pipeline",
                "pipeline_service_list_pipeline_versions",
            ],
            api.PipelineUploadServiceApi: ["upload_pipeline_version"],
            api.RunServiceApi: ["run_service_create_run", "run_service_get_run"],
        }
        self._operations = {
            name: operation(service, name) for service, names in services.items() for name in names
        }

    @property
    def asked(self) -> list[str]:
        """The operations that were asked for, in order."""
        return [request.operation for request in self.requests]

    def answer(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> bytes:
        """The JSON for a request.

        Raises:
            RefusedError: with the status and message for one that cannot be met.
        """
        path, _, query_string = url.partition("?")
        name, found = self._find(method, path)
        known = self._operations[name]
        query = dict(urllib.parse.parse_qsl(query_string, strict_parsing=bool(query_string)))
        self.requests.append(Request(name, query, headers))
        if self.token and headers.get("authorization") != f"Bearer {self.token}":
            raise RefusedError(401, f"Request header error: {headers.get('authorization')} is not known")
        if name in self.refusals:
            raise RefusedError(*self.refusals[name])
        if unknown := query.keys() - known.query:
            raise RefusedError(400, f"{name} has no query parameters {unknown}")
        content = (read(json.loads(body), known.body),) if known.body else ()
        if name.startswith("upload_"):
            content = (_uploaded_file(headers, body),)
        model = getattr(self, f"_{name}")(*content, **found.groupdict(), **query)
        assert type(model).__name__ == known.answer
        return write(model, known.answer)

    def _find(self, method: str, path: str) -> tuple[str, "re.Match[str]"]:
        for name, known in self._operations.items():
            if known.method == method and (found := known.path.fullmatch(path)):
                return name, found
        raise RefusedError(404, f"Not Found: {method} {path}")

    def _healthz_service_get_healthz(self) -> Any:
        return api.V2beta1GetHealthzResponse(multi_user=self.multi_user)

    def _experiment_service_list_experiments(self, filter: str, namespace: str = "") -> Any:
        self._check_namespace(namespace)
        found = _filtered(self.experiments, filter, namespace=namespace)
        return api.V2beta1ListExperimentsResponse(experiments=found, total_size=len(found or []))

    def _experiment_service_create_experiment(self, experiment: Any) -> Any:
        self._check_namespace(experiment.namespace)
        experiment.experiment_id = _add(self.experiments, experiment)
        experiment.created_at, experiment.storage_state = START, "AVAILABLE"
        return experiment

    def _pipeline_service_list_pipelines(self, filter: str, namespace: str = "") -> Any:
        found = _filtered(self.pipelines, filter, namespace=namespace)
        return api.V2beta1ListPipelinesResponse(pipelines=found, total_size=len(found or []))

    def _pipeline_service_create_pipeline(self, pipeline: Any) -> Any:
        pipeline.name = pipeline.name or pipeline.display_name
        pipeline.pipeline_id = _add(self.pipelines, pipeline)
        pipeline.created_at = START
        return pipeline

    def _pipeline_service_list_pipeline_versions(self, pipeline_id: str, filter: str) -> Any:
        found = _filtered(self.versions, filter, pipeline_id=pipeline_id)
        return api.V2beta1ListPipelineVersionsResponse(pipeline_versions=found, total_size=len(found or []))

    def _upload_pipeline_version(self, package: str, name: str, pipelineid: str) -> Any:
        if pipelineid not in self.pipelines:
            raise RefusedError(400, "Failed to create a pipeline version")
        parsed = _parse_package(package)
        version = api.V2beta1PipelineVersion(
            pipeline_id=pipelineid, name=name, display_name=name, created_at=START, pipeline_spec=parsed
        )
        version.pipeline_version_id = _add(self.versions, version)
        self.packages[version.pipeline_version_id] = package
        return version

    def _run_service_create_run(self, run: Any, experiment_id: str = "") -> Any:
        reference = run.pipeline_version_reference
        version = self.versions.get(reference.pipeline_version_id)
        if version is None or version.pipeline_id != reference.pipeline_id:
            raise RefusedError(404, f"PipelineVersion {reference.pipeline_version_id} not found")
        if (experiment_id or run.experiment_id) not in self.experiments:
            raise RefusedError(404, f"Experiment {run.experiment_id} not found")
        if not run.display_name:
            raise RefusedError(400, "The run name is empty")
        _check_parameters(version.pipeline_spec, run.runtime_config.parameters)
        run.run_id = _add(self.runs, run, unique=False)
        run.state, run.storage_state, run.created_at = "PENDING", "AVAILABLE", START
        run.finished_at = datetime.fromtimestamp(0, UTC)
        return run

    def _run_service_get_run(self, run_id: str) -> Any:
        if run_id not in self.runs:
            raise RefusedError(404, f"Run {run_id} not found")
        look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if callable(look):
            look = look()
        if isinstance(look, int):
            raise RefusedError(look, "the database is away")
        run = self.runs[run_id]
        run.state = look.state
        run.error = api.GoogleRpcStatus(code=13, message=look.error) if look.error else None
        nodes = [node for place, task in enumerate(look.tasks) for node in _nodes(run_id, place, task)]
        run.run_details = api.V2beta1RunDetails(task_details=sorted(nodes, key=lambda node: node.task_id))
        return run

    def _check_namespace(self, namespace: str | None) -> None:
        if self.multi_user and not namespace:
            raise RefusedError(400, "Invalid input error: a namespace is required in multi-user mode")


def _add(things: dict[str, Any], thing: Any, unique: bool = True) -> str:
    same = [old for old in things.values() if old.display_name == thing.display_name]
    scope = "pipeline_id" if hasattr(thing, "pipeline_version_id") else "namespace"
    if unique and any(getattr(old, scope) == getattr(thing, scope) for old in same):
        raise RefusedError(409, f"Already exist error: the name {thing.display_name} is taken")
    identity = str(uuid.uuid4())
    things[identity] = thing
    return identity


def _filtered(things: dict[str, Any], text: str, **equal: str) -> list[Any] | None:
    """As the server does: equality of one field, and no list at all where nothing is found."""
    predicates = read(json.loads(text), "V2beta1Filter", "filter").predicates
    found = list(things.values())
    for predicate in predicates:
        if predicate.operation != "EQUALS":
            raise RefusedError(400, f"the stub knows no filter {predicate.operation}")
        found = [thing for thing in found if getattr(thing, predicate.key) == predicate.string_value]
    for key, value in equal.items():
        found = [thing for thing in found if (getattr(thing, key) or "") == value]
    return found or None


def _uploaded_file(headers: Mapping[str, str], body: bytes) -> str:
    head = f"Content-Type: {headers['content-type']}\r\n\r\n".encode()
    form = email.parser.BytesParser().parsebytes(head + body)
    parts = {part.get_param("name", header="content-disposition"): part for part in form.get_payload()}
    if parts.keys() != {"uploadfile"} or not str(parts["uploadfile"].get_filename()).endswith(".yaml"):
        raise RefusedError(400, "Failed to read pipeline from file")
    return bytes(parts["uploadfile"].get_payload(decode=True)).decode()


@cache  # the loader takes half a second
def _parse_package(package: str) -> dict[str, Any]:
    """The pipeline spec of a package that kfp can load.

    Raises:
        RefusedError: it cannot.
    """
    try:
        components.load_component_from_text(package)
        pipeline, *platforms = yaml.safe_load_all(package)
        spec = json_format.ParseDict(pipeline, pipeline_spec_pb2.PipelineSpec())
        for platform in platforms:
            json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    except Exception as error:  # the loader raises a dozen kinds
        raise RefusedError(400, f"Invalid input error: failed to parse the pipeline: {error}") from error
    return dict(json_format.MessageToDict(spec))


def _check_parameters(spec: dict[str, Any], given: Mapping[str, Any]) -> None:
    known = spec["root"]["inputDefinitions"]["parameters"]
    if unknown := given.keys() - known.keys():
        raise RefusedError(400, f"Invalid input error: unknown parameters {unknown}")
    for name, definition in known.items():
        if name not in given and "defaultValue" not in definition and not definition.get("isOptional"):
            raise RefusedError(400, f"Invalid input error: the parameter {name} is missing")
        if definition["parameterType"] == "STRING" and not isinstance(given.get(name, ""), str):
            raise RefusedError(400, f"Invalid input error: the parameter {name} is not a string")


def _nodes(run_id: str, place: int, task: Task) -> Iterator[Any]:
    """The workflow's nodes around a step, and those that are always there."""
    begin = START + timedelta(seconds=10 * place)
    over = task.state not in ("PENDING", "RUNNING")
    states = {task.name: task.state, f"{task.name}-driver": "SUCCEEDED", "executor": task.state}
    if place == 0:
        around = ("automixalign-x7k2p", "root", "for-loop-1", "iteration-iterations(0:0)", "iteration-item")
        states |= dict.fromkeys(around, "RUNNING") | {
            "root-driver": "SUCCEEDED",
            "iteration-driver": "SUCCEEDED",
        }
    for name, state in states.items():
        own = name == task.name
        yield api.V2beta1PipelineTaskDetail(
            run_id=run_id,
            task_id=str(uuid.uuid5(uuid.NAMESPACE_OID, f"{run_id} {place} {name}")),
            display_name=name,
            create_time=START,
            start_time=begin,
            end_time=begin + timedelta(seconds=task.seconds) if over and own else NEVER,
            state=state,
            execution_id="0",
            error=api.GoogleRpcStatus(code=13, message=task.error)
            if task.error and name == task.name
            else None,
            child_tasks=[api.PipelineTaskDetailChildTask(pod_name="automixalign-x7k2p-123")],
        )


@contextmanager
def kfp_stub(tls: ssl.SSLContext | None = None) -> Iterator[Stub]:
    """A running server, on 127.0.0.1 and a free port."""
    stub = Stub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            if not self.path.startswith(f"{stub.prefix}/"):
                self._send(200, b"<html>Kubeflow Central Dashboard</html>", "text/html")
                return
            try:
                content = stub.answer(self.command, self.path.removeprefix(stub.prefix), self.headers, body)
                self._send(200, content)
            except RefusedError as error:
                said = {"error": str(error), "code": _GRPC_CODES.get(error.status, 13), "message": str(error)}
                if "/upload" in self.path:
                    said = {"error_message": str(error), "error_details": str(error)}
                self._send(error.status, json.dumps(said).encode())
            except Exception as error:
                if not isinstance(error, OSError):
                    stub.faults.append(repr(error))
                raise

        def _send(self, status: int, content: bytes, kind: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        block_on_close = False  # a client may keep its connection

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Only what is the stub's own fault: clients may go when they like."""
            if not isinstance(sys.exception(), OSError):
                super().handle_error(request, client_address)

    server = Server(("127.0.0.1", 0), Handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    stub.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert stub.faults == []
