"""S3 down, slow, silent, refusing, cut off: a named error, or recovery; a publication is whole or absent."""

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from automixalign.config.experiment import Experiment, parse_experiment
from automixalign.config.release import PublicationSettings
from automixalign.preflight.validate import plan_experiment
from automixalign.release.publish import publish_run
from automixalign.steps.step import run_step
from automixalign.storage import files, publication, s3
from automixalign.system.errors import DamagedError, StorageError, UnreachableError
from benchmarks import tiny
from benchmarks.servers.proxy import Fault, Proxy, http, proxy
from benchmarks.servers.seaweed import Seaweed, seaweed
from tests.faults.command_line import ama
from tests.faults.common import raises

URI = "s3://ready/run"
ADVICE = "check that the server is up and that AWS_ENDPOINT_URL is its address"
LARGE_BYTES = s3._PART_BYTES + (4 << 20)
"""Size of an object that goes in two parts."""
BUSY = http(
    "503 Slow Down",
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>reduce your rate</Message></Error>",
    "application/xml",
)
WEB_PAGE = http("200 OK", b"<html><body>welcome to nginx</body></html>", "text/html")
SETTINGS = PublicationSettings.model_validate({"seed": 0, "output": {"to": URI}, "run": "tiny"})
UNREACHABLE = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
ON_S3: dict[str, dict[str, Any]] = {
    "output": {"output": URI},
    "a task": {"tasks": [{"name": "a", "source": f"{URI}/rows.jsonl"}]},
    "the base model": {"base_model": f"{URI}/base"},
}
"""The parts of an experiment that can be on S3."""


class Rig(NamedTuple):
    """A server, a proxy in front of it, and a model to publish."""

    server: Seaweed
    proxy: Proxy
    model: Path
    environment: Callable[..., None]

    @property
    def folder(self) -> Path:
        """The test's own folder."""
        return self.model.parent

    @contextmanager
    def struck_by(self, fault: Fault) -> Iterator[None]:
        """The fault lasts for a while; the client waits for a silent server for two seconds only."""
        self.proxy.fault = fault
        self.environment(**{s3.TIMEOUT: "2" if fault.stall_received is not None else None})
        yield
        self.environment(**{s3.TIMEOUT: None})
        self.proxy.fault = Fault()

    def publish(self) -> None:
        """Publish the model."""
        publication.publish({"models/a": self.model}, URI)

    def publish_run(self, **options: Any) -> None:
        """Publish as the stage does."""
        publish_run(SETTINGS, {"models/a": self.model}, self.folder / "publication.json", **options)

    def check_published(self) -> None:
        """A reader gets the model as it is."""
        copy = self.folder / f"copy-{time.monotonic_ns()}"
        publication.fetch(URI, copy)
        assert files.digest(copy / "models" / "a") == files.digest(self.model)


@pytest.fixture
def rig(tmp_path: Path, environment: Callable[..., None]) -> Iterator[Rig]:
    (tmp_path / "server").mkdir()
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_bytes(random.Random(0).randbytes(LARGE_BYTES))
    (model / "config.json").write_bytes(random.Random(1).randbytes(300_000))
    with seaweed(tmp_path / "server") as server, proxy(server.ports[0]) as between:
        removed = dict.fromkeys(("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", s3.TIMEOUT))
        changes = {"AWS_ENDPOINT_URL": between.url, "AWS_MAX_ATTEMPTS": "3"}
        environment(**{**server.environment, **removed, **changes})
        yield Rig(server, between, model, environment)


def fault(name: str, value: Fault, *parts: str, slow: bool = False) -> Any:
    return pytest.param(value, parts, id=name, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize(
    ("fault", "parts"),
    [
        fault("silent", Fault(stall_received=0), ADVICE, slow=True),
        fault("cut in a single upload", Fault(cut_sent=100_000), ADVICE, slow=True),
        fault("cut in an upload of parts", Fault(cut_sent=2 << 20), ADVICE),
        fault("flipped bit", Fault(flip_sent=150_000), "the data changed in transit", slow=True),
    ],
)
def test_an_upload_fails_and_leaves_no_publication(rig: Rig, fault: Fault, parts: tuple[str, ...]) -> None:
    kind = UnreachableError if ADVICE in parts else StorageError
    with rig.struck_by(fault), raises(kind, URI, *parts):
        rig.publish()
    with raises(StorageError, "is no publication"):
        publication.fetch(URI, rig.folder / "none")
    assert not (rig.folder / "none").exists()
    rig.publish()
    rig.check_published()


@pytest.mark.parametrize(
    ("fault", "parts"),
    [
        fault("slow", Fault(delay=0.2), slow=True),
        fault("busy twice", Fault(answer=BUSY, times=2)),
        fault("cut twice in an upload of parts", Fault(cut_sent=2 << 20, times=2), slow=True),
    ],
)
def test_an_upload_recovers(rig: Rig, fault: Fault, parts: tuple[str, ...]) -> None:
    with rig.struck_by(fault):
        rig.publish()
        assert rig.proxy.struck or fault.delay, "the fault never struck"
    rig.check_published()


@pytest.mark.parametrize(
    ("fault", "parts"),
    [
        fault("cut", Fault(cut_received=1 << 20), ADVICE),
        fault("silent", Fault(stall_received=1 << 20), ADVICE, slow=True),
        fault("flipped bit", Fault(flip_received=2 << 20), "is not what was stored"),
    ],
)
def test_a_download_fails_and_leaves_no_half_file(rig: Rig, fault: Fault, parts: tuple[str, ...]) -> None:
    rig.environment(AWS_MAX_ATTEMPTS="2")
    rig.publish()
    kind = UnreachableError if ADVICE in parts else DamagedError
    with rig.struck_by(fault), raises(kind, URI, *parts):
        s3.download(f"{URI}/models/a", rig.folder / "new")
    assert {path.name for path in (rig.folder / "new").rglob("*") if path.is_file()} <= {"config.json"}
    rig.check_published()


@pytest.mark.slow
def test_a_download_that_is_cut_twice_recovers(rig: Rig) -> None:
    rig.publish()
    with rig.struck_by(Fault(cut_received=1 << 20, times=2)):
        s3.download(f"{URI}/models/a", rig.folder / "new")
        assert rig.proxy.struck
    assert files.digest(rig.folder / "new") == files.digest(rig.model)


def experiment_on_s3(part: str) -> Experiment:
    return parse_experiment({**tiny.experiment(), **ON_S3[part]}, "the test")


@pytest.mark.parametrize("part", ON_S3)
def test_the_plan_notices_a_server_that_is_down(environment: Callable[..., None], part: str) -> None:
    environment(**UNREACHABLE, AWS_MAX_ATTEMPTS=None)  # as many attempts as users have
    began = time.monotonic()
    with raises(UnreachableError, URI, ADVICE):
        plan_experiment(experiment_on_s3(part))
    assert time.monotonic() - began < 30


@pytest.mark.slow
def test_the_run_notices_a_server_that_is_down(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(json.dumps({**tiny.experiment(), "output": URI}))
    ended = ama("run", "--config", tmp_path / "config.yaml", "--output", tmp_path / "run", **UNREACHABLE)
    assert ended.returncode == 2, ended.stderr
    assert ADVICE in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "run").exists()


def test_a_web_page_instead_of_s3(environment: Callable[..., None]) -> None:
    with proxy(9) as between:
        environment(**{**UNREACHABLE, "AWS_ENDPOINT_URL": between.url})
        between.fault = Fault(answer=WEB_PAGE)
        for part in ON_S3:
            with raises(StorageError, URI, "AWS_ENDPOINT_URL is"):
                plan_experiment(experiment_on_s3(part))


def test_a_wrong_secret_is_named_and_not_shown(rig: Rig) -> None:
    rig.environment(AWS_SECRET_ACCESS_KEY="wrong-and-secret")
    with raises(StorageError, "SignatureDoesNotMatch", "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        publication.check_writable(URI)
    with pytest.raises(StorageError) as error:
        publication.check_writable(URI)
    assert "wrong-and-secret" not in str(error.value)


def test_the_bucket_is_gone_at_the_end(rig: Rig) -> None:
    publication.check_writable(URI)
    client = rig.server.client
    for item in client.list_objects_v2(Bucket="ready").get("Contents", []):
        client.delete_object(Bucket="ready", Key=item["Key"])
    client.delete_bucket(Bucket="ready")
    with raises(StorageError, URI, "create the bucket or name"):
        rig.publish()
    client.create_bucket(Bucket="ready")
    rig.publish()
    rig.check_published()


def test_a_server_that_is_down_at_the_publish_stage(rig: Rig) -> None:
    """The stage fails; the results of the run stay, and are published later."""
    digest = files.digest(rig.model)
    rig.server.kill()
    with raises(UnreachableError, URI, ADVICE), run_step("publish"):
        rig.publish_run(pause_seconds=(0.1,))
    assert not (rig.folder / "publication.json").exists()
    assert files.digest(rig.model) == digest
    with seaweed(rig.folder / "server", rig.server.ports):
        with run_step("publish"):
            rig.publish_run()
        rig.check_published()


@pytest.mark.slow
def test_a_server_that_restarts_during_the_publish_stage(rig: Rig) -> None:
    with ExitStack() as stack:
        rig.proxy.fault = Fault(delay=0.01)

        def restart() -> None:
            while rig.proxy.sent < 6 << 20:
                time.sleep(0.01)
            rig.server.kill()
            time.sleep(2)
            stack.enter_context(seaweed(rig.folder / "server", rig.server.ports))

        restarting = threading.Thread(target=restart)
        restarting.start()
        try:
            rig.publish_run()
        finally:
            restarting.join()
        rig.proxy.fault = Fault()
        rig.check_published()
