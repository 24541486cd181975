"""A Kubeflow Pipelines server for the tests; no live server was available.

It is a real HTTP server. kfp's own packages check it, so it cannot differ from them:

- kfp_server_api's operations give the paths, the query parameters, and the types of bodies and answers;
- every body must match its model field by field; an unknown field is refused;
- every answer is made of models and must be equal after a round trip through JSON;
- kfp's own loader must accept an uploaded package, and a run's parameters must match the package.

What the models do not specify follows the source of the 2.17 server: a run's tasks are all nodes of its
workflow (drivers, executors, loops) in no order, a task that has not ended ends in the year 1, and no task has
an error.
"""

import json
import re
import ssl
import threading
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import kfp_server_api as api
import werkzeug
import yaml
from google.protobuf import json_format
from kfp import components
from kfp.pipeline_spec import pipeline_spec_pb2
from werkzeug.serving import WSGIRequestHandler, make_server

NEVER = datetime(1, 1, 1, tzinfo=UTC)
START = datetime(2026, 1, 1, 12, tzinfo=UTC)
_NATIVE = {"str": str, "int": int, "bool": bool, "float": (int, float), "datetime": str, "object": object}
_CLIENT_ARGUMENTS = {"async_req", "_preload_content", "_request_timeout", "_return_http_data_only"}
_GRPC_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6}
_OPERATIONS = {
    "healthz_service_get_healthz": api.HealthzServiceApi,
    "experiment_service_list_experiments": api.ExperimentServiceApi,
    "experiment_service_create_experiment": api.ExperimentServiceApi,
    "pipeline_service_list_pipelines": api.PipelineServiceApi,
    "pipeline_service_create_pipeline": api.PipelineServiceApi,
    "pipeline_service_list_pipeline_versions": api.PipelineServiceApi,
    "upload_pipeline_version": api.PipelineUploadServiceApi,
    "run_service_create_run": api.RunServiceApi,
    "run_service_get_run": api.RunServiceApi,
}


class RefusedError(Exception):
    """A request that the server answers with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Task(NamedTuple):
    """A stage of the DAG in one state of a run."""

    name: str
    state: str
    error: str = ""
    seconds: float = 7.5


class RunState(NamedTuple):
    """The answer to one request for a run. A task has the same index in every answer."""

    state: str
    tasks: Sequence[Task] = ()
    error: str = ""


class Request(NamedTuple):
    """A request of the client."""

    operation: str
    query: dict[str, str]
    headers: Mapping[str, str]


class Operation(NamedTuple):
    """An operation of the API, read from kfp_server_api."""

    method: str
    path: "re.Pattern[str]"
    query: frozenset[str]
    body: str | None
    answer: str


class _Recorder(api.ApiClient):  # type: ignore[misc]
    """Records what an operation would send."""

    def call_api(self, resource_path: str, method: str, *arguments: Any, **keywords: Any) -> None:
        self.called = (resource_path, method, arguments[1], keywords["body"], keywords["response_type"])


@cache
def operation(name: str) -> Operation:
    """The operation of this name, as kfp_server_api sends it."""
    recorder = _Recorder()
    method = getattr(_OPERATIONS[name](recorder), name)
    types = dict(re.findall(r":type (\w+): (\w+)", method.__doc__))
    arguments = {key: f"<{key}>" for key in types if key not in _CLIENT_ARGUMENTS}
    method(**arguments)
    path, verb, query, body, answer = recorder.called
    pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/:]+)", re.escape(path))
    body_type = next((types[key] for key, value in arguments.items() if value == body), None)
    return Operation(verb, re.compile(pattern), frozenset(key for key, _ in query), body_type, answer)


def read(data: Any, kind: str, where: str = "body") -> Any:
    """A model from JSON.

    Raises:
        RefusedError: a field is unknown or has another type.
    """
    _check(data, kind, where)
    return api.ApiClient().deserialize(SimpleNamespace(data=json.dumps(data)), kind)


def write(model: Any, kind: str) -> bytes:
    """The JSON of a model; reading it must give an equal model."""
    data = api.ApiClient().sanitize_for_serialization(model)
    assert read(data, kind, kind) == model
    return json.dumps(data).encode()


def _check(data: Any, kind: str, where: str) -> None:
    if match := re.fullmatch(r"list\[(.*)\]", kind):
        _require(isinstance(data, list), where, kind)
        for number, item in enumerate(data):
            _check(item, match[1], f"{where}.{number}")
    elif match := re.fullmatch(r"dict\(str, (.*)\)", kind):
        _require(isinstance(data, dict), where, kind)
        for key, item in data.items():
            _check(item, match[1], f"{where}.{key}")
    elif kind in _NATIVE:
        _require(
            isinstance(data, _NATIVE[kind]) and (kind in ("bool", "object") or data is not True), where, kind
        )
        if kind == "datetime":
            datetime.fromisoformat(data)
    elif values := getattr(getattr(api.models, kind), "allowable_values", None):
        _require(data in values, where, f"one of {values}")
    else:
        model = getattr(api.models, kind)
        types = {key: model.openapi_types[name] for name, key in model.attribute_map.items()}
        _require(isinstance(data, dict), where, kind)
        for key, item in data.items():
            _require(key in types, f"{where}.{key}", f"a field of {kind}")
            _check(item, types[key], f"{where}.{key}")


def _require(holds: bool, where: str, expected: str) -> None:
    if not holds:
        raise RefusedError(400, f"{where} is not {expected}")


class Stub:
    """The server's content, the requests so far, and the answers to come.

    Attributes:
        states: answers to the next requests for a run; the last one repeats. An HTTP status is an error; a
            callable is called for the answer.
        token: the only token that is accepted, if any.
        refusals: operation -> status and message of its error.
        multi_user: whether a namespace is required.
        prefix: the path of the API; every other path is answered with a page.
    """

    def __init__(self) -> None:
        self.states: list[RunState | int | Callable[[], RunState | int]] = [RunState("SUCCEEDED")]
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

    @property
    def operations(self) -> list[str]:
        """The operations that were requested, in order."""
        return [request.operation for request in self.requests]

    @property
    def run_links(self) -> list[str]:
        """The addresses of the runs in the user interface."""
        return [f"{self.url}/#/runs/details/{run_id}" for run_id in self.runs]

    def answer(self, request: werkzeug.Request) -> bytes:
        """The JSON for a request.

        Raises:
            RefusedError: the server answers with an error.
        """
        name, arguments = self._find(request.method, request.path.removeprefix(self.prefix))
        known = operation(name)
        query = dict(urllib.parse.parse_qsl(request.query_string.decode(), strict_parsing=bool(request.args)))
        self.requests.append(Request(name, query, request.headers))
        authorization = request.headers.get("authorization")
        if self.token and authorization != f"Bearer {self.token}":
            raise RefusedError(401, f"Request header error: {authorization} is not known")
        if name in self.refusals:
            raise RefusedError(*self.refusals[name])
        if unknown := query.keys() - known.query:
            raise RefusedError(400, f"{name} has no query parameters {unknown}")
        if name.startswith("upload_"):
            content = [_uploaded_file(request)]
        else:
            content = [read(json.loads(request.get_data()), known.body)] if known.body else []
        model = getattr(self, f"_{name}")(*content, **arguments, **query)
        assert type(model).__name__ == known.answer
        return write(model, known.answer)

    def _find(self, method: str, path: str) -> tuple[str, dict[str, str]]:
        for name in _OPERATIONS:
            if operation(name).method == method and (match := operation(name).path.fullmatch(path)):
                return name, match.groupdict()
        raise RefusedError(404, f"Not Found: {method} {path}")

    def _healthz_service_get_healthz(self) -> Any:
        return api.V2beta1GetHealthzResponse(multi_user=self.multi_user)

    def _experiment_service_list_experiments(self, filter: str, namespace: str = "") -> Any:
        self._check_namespace(namespace)
        matches, size = _filtered(self.experiments, filter, namespace=namespace)
        return api.V2beta1ListExperimentsResponse(experiments=matches, total_size=size)

    def _experiment_service_create_experiment(self, experiment: Any) -> Any:
        self._check_namespace(experiment.namespace)
        experiment.experiment_id = _add(self.experiments, experiment)
        experiment.created_at, experiment.storage_state = START, "AVAILABLE"
        return experiment

    def _pipeline_service_list_pipelines(self, filter: str, namespace: str = "") -> Any:
        matches, size = _filtered(self.pipelines, filter, namespace=namespace)
        return api.V2beta1ListPipelinesResponse(pipelines=matches, total_size=size)

    def _pipeline_service_create_pipeline(self, pipeline: Any) -> Any:
        pipeline.name = pipeline.name or pipeline.display_name
        pipeline.pipeline_id = _add(self.pipelines, pipeline)
        pipeline.created_at = START
        return pipeline

    def _pipeline_service_list_pipeline_versions(self, pipeline_id: str, filter: str) -> Any:
        matches, size = _filtered(self.versions, filter, pipeline_id=pipeline_id)
        return api.V2beta1ListPipelineVersionsResponse(pipeline_versions=matches, total_size=size)

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
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if callable(state):
            state = state()
        if isinstance(state, int):
            raise RefusedError(state, "the database is away")
        run = self.runs[run_id]
        run.state, run.error = state.state, _error(state.error)
        nodes = [node for number, task in enumerate(state.tasks) for node in _nodes(run_id, number, task)]
        run.run_details = api.V2beta1RunDetails(task_details=sorted(nodes, key=lambda node: node.task_id))
        return run

    def _check_namespace(self, namespace: str | None) -> None:
        if self.multi_user and not namespace:
            raise RefusedError(400, "Invalid input error: a namespace is required in multi-user mode")


def _add(objects: dict[str, Any], new: Any, unique: bool = True) -> str:
    """Add an object under a new id; its name must be unique in its namespace or pipeline."""
    scope = "pipeline_id" if hasattr(new, "pipeline_version_id") else "namespace"
    same = [old for old in objects.values() if old.display_name == new.display_name] if unique else []
    if any(getattr(old, scope) == getattr(new, scope) for old in same):
        raise RefusedError(409, f"Already exist error: the name {new.display_name} is in use")
    identity = str(uuid.uuid4())
    objects[identity] = new
    return identity


def _filtered(objects: dict[str, Any], text: str, **scope: str) -> tuple[list[Any] | None, int]:
    """The objects that match the filter, and their number; like the server, None instead of an empty list."""
    conditions = dict(scope)
    for predicate in read(json.loads(text), "V2beta1Filter", "filter").predicates:
        if predicate.operation != "EQUALS":
            raise RefusedError(400, f"the stub knows no filter {predicate.operation}")
        conditions[predicate.key] = predicate.string_value
    matches = list(objects.values())
    for key, value in conditions.items():
        matches = [each for each in matches if (getattr(each, key) or "") == value]
    return matches or None, len(matches)


def _error(message: str) -> Any:
    return api.GoogleRpcStatus(code=13, message=message) if message else None


def _uploaded_file(request: werkzeug.Request) -> str:
    if list(request.files) != ["uploadfile"] or not str(request.files["uploadfile"].filename).endswith(".yaml"):
        raise RefusedError(400, "Failed to read pipeline from file")
    return request.files["uploadfile"].read().decode()


@cache  # the loader takes half a second
def _parse_package(package: str) -> dict[str, Any]:
    """The pipeline spec of a package.

    Raises:
        RefusedError: kfp cannot load the package.
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


def _nodes(run_id: str, number: int, task: Task) -> Iterator[Any]:
    """The workflow's nodes around a stage; the first stage also brings the nodes of every workflow."""
    start = START + timedelta(seconds=10 * number)
    is_over = task.state not in ("PENDING", "RUNNING")
    states = {task.name: task.state, f"{task.name}-driver": "SUCCEEDED", "executor": task.state}
    if number == 0:
        around = ("automixalign-x7k2p", "root", "for-loop-1", "iteration-iterations(0:0)", "iteration-item")
        states |= dict.fromkeys(around, "RUNNING")
        states |= dict.fromkeys(("root-driver", "iteration-driver"), "SUCCEEDED")
    for name, state in states.items():
        is_stage = name == task.name
        yield api.V2beta1PipelineTaskDetail(
            run_id=run_id,
            task_id=str(uuid.uuid5(uuid.NAMESPACE_OID, f"{run_id} {number} {name}")),
            display_name=name,
            create_time=START,
            start_time=start,
            end_time=start + timedelta(seconds=task.seconds) if is_over and is_stage else NEVER,
            state=state,
            execution_id="0",
            error=_error(task.error) if is_stage else None,
            child_tasks=[api.PipelineTaskDetailChildTask(pod_name="automixalign-x7k2p-123")],
        )


class _QuietHandler(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        """Print nothing."""


@contextmanager
def kfp_stub(tls: ssl.SSLContext | None = None) -> Iterator[Stub]:
    """A running server, on 127.0.0.1 and a free port."""
    stub = Stub()

    @werkzeug.Request.application
    def serve(request: werkzeug.Request) -> werkzeug.Response:
        if not request.path.startswith(f"{stub.prefix}/"):
            return werkzeug.Response("<html>Kubeflow Central Dashboard</html>", mimetype="text/html")
        try:
            return werkzeug.Response(stub.answer(request), mimetype="application/json")
        except RefusedError as error:
            body = {"error": str(error), "code": _GRPC_CODES.get(error.status, 13), "message": str(error)}
            if "/upload" in request.path:
                body = {"error_message": str(error), "error_details": str(error)}
            return werkzeug.Response(json.dumps(body), error.status, mimetype="application/json")
        except Exception as error:
            stub.faults.append(repr(error))
            raise

    server = make_server("127.0.0.1", 0, serve, threaded=True, request_handler=_QuietHandler, ssl_context=tls)
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
