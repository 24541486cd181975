"""S3 down, slow, silent, refusing, cut off: a named error, or recovery; a publication is whole or absent."""

import json
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from automixalign.config.release import PublicationSettings
from automixalign.preflight.validate import plan_experiment
from automixalign.release.publish import publish_run
from automixalign.steps.step import run_step
from automixalign.storage import files, s3
from automixalign.storage import publication as publish
from automixalign.system.errors import DamagedError, StorageError, UnreachableError
from benchmarks import tiny
from benchmarks.faults._outcome import environment, refused, see
from benchmarks.faults.case import Case, ama
from benchmarks.servers.proxy import Fault, Proxy, http, proxy
from benchmarks.servers.seaweed import Seaweed, seaweed

PLACE = "s3://ready/run"
_SERVER = "see that the server is up and that AWS_ENDPOINT_URL is its address"
_LARGE = (s3._PART >> 20) + 4
"""Megabytes of an object that goes in two parts."""
_BUSY = http(
    "503 Slow Down",
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>reduce your rate</Message></Error>",
    "application/xml",
)
_PAGE = http("200 OK", b"<html><body>welcome to nginx</body></html>", "text/html")


_SETTINGS = PublicationSettings.model_validate({"seed": 0, "output": {"to": PLACE}, "run": "tiny"})


class Stand(NamedTuple):
    """A server, what stands in front of it, and things to publish."""

    server: Seaweed
    between: Proxy
    artifacts: dict[str, Path]
    folder: Path


@contextmanager
def _stand(folder: Path, attempts: int = 3) -> Iterator[Stand]:
    (folder / "server").mkdir()
    model = folder / "model"
    model.mkdir()
    (model / "weights").write_bytes(random.Random(0).randbytes(_LARGE << 20))
    (model / "config.json").write_bytes(random.Random(1).randbytes(300_000))
    with ExitStack() as stack:
        server = stack.enter_context(seaweed(folder / "server"))
        between = stack.enter_context(proxy(server.ports[0]))
        changes = {"AWS_ENDPOINT_URL": between.url, "AWS_MAX_ATTEMPTS": str(attempts)}
        unset = dict.fromkeys(("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", s3.TIMEOUT))
        stack.enter_context(environment(**{**server.environment, **unset, **changes}))
        yield Stand(server, between, {"models/a": model}, folder)


@contextmanager
def _struck_by(stand: Stand, fault: Fault) -> Iterator[None]:
    """The fault is there, then no more; only of a silent server is it known that waiting is in vain."""
    stand.between.fault = fault
    haste = {s3.TIMEOUT: "2"} if fault.stall_received is not None else {}
    with environment(**haste):
        yield
    stand.between.fault = Fault()


def _published_whole(stand: Stand) -> None:
    """Publish, which must go well now, and hold what a reader gets against what was there."""
    publish.publish(stand.artifacts, PLACE)
    _fetched_whole(stand)


def _fetched_whole(stand: Stand) -> None:
    with tempfile.TemporaryDirectory(dir=stand.folder) as scratch:
        publish.fetch(PLACE, Path(scratch) / "new")
        found = files.digest(Path(scratch) / "new" / "models" / "a")
    see(found == files.digest(stand.artifacts["models/a"]), "what was fetched is not what was published")


def _no_publication(stand: Stand) -> None:
    refused(StorageError, lambda: publish.fetch(PLACE, stand.folder / "none"), "is no publication")
    see(not (stand.folder / "none").exists(), "half a publication was fetched")


def upload_ends(
    fault: Fault, *parts: str, kind: type[StorageError] = UnreachableError
) -> Callable[[Path], str]:
    """The fault stays: a named error and no publication; whole when published again without the fault."""

    def run(folder: Path) -> str:
        with _stand(folder) as stand:
            with _struck_by(stand, fault):
                seen = refused(kind, lambda: publish.publish(stand.artifacts, PLACE), PLACE, *parts)
            _no_publication(stand)
            _published_whole(stand)
            return f"{seen} | published again: whole"

    return run


def upload_recovers(fault: Fault) -> Callable[[Path], str]:
    """The fault passes: retries finish the upload."""

    def run(folder: Path) -> str:
        with _stand(folder) as stand:
            with _struck_by(stand, fault):
                publish.publish(stand.artifacts, PLACE)
                struck = stand.between.struck
            see(struck or fault.delay, "the fault never struck")
            _fetched_whole(stand)
            return f"retried after {struck} broken connections: whole" if struck else "whole"

    return run


def download_ends(
    fault: Fault, *parts: str, kind: type[StorageError] = UnreachableError
) -> Callable[[Path], str]:
    """The fault stays: a named error and no file; whole when fetched again without the fault."""

    def run(folder: Path) -> str:
        with _stand(folder, attempts=2) as stand:
            publish.publish(stand.artifacts, PLACE)
            target = folder / "new"
            with _struck_by(stand, fault):
                seen = refused(kind, lambda: s3.download(f"{PLACE}/models/a", target), PLACE, *parts)
            left = [path.name for path in target.rglob("*") if path.is_file() and path.name != "config.json"]
            see(not left, f"left behind: {left}")
            _fetched_whole(stand)
            return f"{seen} | fetched again: whole"

    return run


def download_recovers(fault: Fault) -> Callable[[Path], str]:
    """The fault passes: retries finish the download."""

    def run(folder: Path) -> str:
        with _stand(folder) as stand:
            publish.publish(stand.artifacts, PLACE)
            with _struck_by(stand, fault):
                s3.download(f"{PLACE}/models/a", folder / "new")
                struck = stand.between.struck
            see(struck, "the fault never struck")
            same = files.digest(folder / "new") == files.digest(stand.artifacts["models/a"])
            see(same, "what arrived is not what was stored")
            return f"retried after {struck} broken connections: whole"

    return run


_NOBODY = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
"""Nobody listens there."""

ON_S3: dict[str, dict[str, Any]] = {
    "output": {"output": PLACE},
    "a task": {"tasks": [{"name": "a", "source": f"{PLACE}/rows.jsonl"}]},
    "the base model": {"base_model": f"{PLACE}/base"},
}
"""What of an experiment can lie on S3."""


def down_at_start(what: str) -> Callable[[Path], str]:
    """Nothing listens: the plan is refused within seconds, with as many attempts as users have by default."""

    def run(folder: Path) -> str:
        from automixalign.config.experiment import parse_experiment

        experiment = parse_experiment({**tiny.experiment(), **ON_S3[what]}, "the case")
        with environment(**_NOBODY, AWS_MAX_ATTEMPTS=None):
            began = time.monotonic()
            seen = refused(UnreachableError, lambda: plan_experiment(experiment), PLACE, _SERVER)
            took = time.monotonic() - began
        see(took < 15, f"it took {took:.0f} s: {seen}")
        return f"{seen} (after {took:.1f} s)"

    return run


def web_page(folder: Path) -> str:
    """AWS_ENDPOINT_URL is the address of a web page, which says 200 to everything."""
    from automixalign.config.experiment import parse_experiment

    seen = ""
    with proxy(9) as between, environment(**{**_NOBODY, "AWS_ENDPOINT_URL": between.url}):
        between.fault = Fault(answer=_PAGE)
        for changes in ON_S3.values():
            experiment = parse_experiment({**tiny.experiment(), **changes}, "the case")
            seen = refused(
                StorageError, lambda given=experiment: plan_experiment(given), PLACE, "AWS_ENDPOINT_URL is"
            )
    return seen


def run_with_server_down(folder: Path) -> str:
    """`ama run` with `output` on a server that is down."""
    (folder / "config.yaml").write_text(json.dumps({**tiny.experiment(), "output": PLACE}))
    began = time.monotonic()
    done = ama("run", "--config", folder / "config.yaml", "--output", folder / "run", **_NOBODY)
    took = time.monotonic() - began
    see(done.returncode == 2, f"exit {done.returncode}: {done.stdout}{done.stderr}")
    see(_SERVER in done.stderr and "Traceback" not in done.stderr, done.stderr)
    see(not (folder / "run").exists(), "a run folder was left")
    return f"exit 2 after {took:.0f} s, no run folder: {done.stderr.strip()}"


def wrong_key(folder: Path) -> str:
    """The server knows the key, but not with this secret; the secret is not shown."""
    with _stand(folder) as stand, environment(**{"AWS_SECRET_ACCESS_KEY": "wrong-and-secret"}):
        seen = refused(
            StorageError,
            lambda: publish.check_writable(PLACE),
            "SignatureDoesNotMatch",
            "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
        see("wrong-and-secret" not in seen, seen)
        see(stand.between.struck == 0, "the proxy meddled")
        return seen


def bucket_gone(folder: Path) -> str:
    """The bucket was there when the run began, and is not when it ends."""
    with _stand(folder) as stand:
        publish.check_writable(PLACE)
        for item in stand.server.client.list_objects_v2(Bucket="ready").get("Contents", []):
            stand.server.client.delete_object(Bucket="ready", Key=item["Key"])
        stand.server.client.delete_bucket(Bucket="ready")
        seen = refused(
            StorageError, lambda: publish.publish(stand.artifacts, PLACE), PLACE, "create the bucket or name"
        )
        stand.server.client.create_bucket(Bucket="ready")
        _published_whole(stand)
        return f"{seen} | with a bucket again: whole"


def down_at_the_publish_step(folder: Path) -> str:
    """The server dies before the last step, which fails; what the run made stays, and is published later."""
    with _stand(folder) as stand:
        before = {name: files.digest(path) for name, path in stand.artifacts.items()}
        stand.server.kill()

        def step() -> None:
            with run_step("publish"):
                publish_run(_SETTINGS, stand.artifacts, folder / "publication.json", pauses=(0.1,))

        seen = refused(UnreachableError, step, PLACE, _SERVER)
        see(not (folder / "publication.json").exists(), "it says that it was published")
        after = {name: files.digest(path) for name, path in stand.artifacts.items()}
        see(before == after, "the run's own files were changed")
        with seaweed(folder / "server", stand.server.ports):
            step()
            _fetched_whole(stand)
        return f"{seen} | published again: whole"


def back_during_retries(folder: Path) -> str:
    """The server is killed in the middle of the publish step and started again two seconds later."""
    with _stand(folder) as stand, ExitStack() as stack:
        stand.between.fault = Fault(delay=0.01)

        def restart() -> None:
            while stand.between.sent < 6 << 20:
                time.sleep(0.01)
            stand.server.kill()
            time.sleep(2)
            stack.enter_context(seaweed(folder / "server", stand.server.ports))

        again = threading.Thread(target=restart)
        again.start()
        try:
            publish_run(_SETTINGS, stand.artifacts, folder / "publication.json")
        finally:
            again.join()
        stand.between.fault = Fault()
        _fetched_whole(stand)
        return "it waited for the server: whole"


CASES = [
    *(
        Case("s3_outages", f"down at start, {what} on S3", "refused at once, with advice", down_at_start(what))
        for what in ON_S3
    ),
    Case("s3_outages", "down at start of `ama run`", "exit 2, advice, no run folder", run_with_server_down),
    Case("s3_outages", "the key is refused (403)", "StorageError, advice, secret hidden", wrong_key),
    Case("s3_outages", "the bucket is gone at the end", "StorageError, advice", bucket_gone),
    Case(
        "s3_outages",
        "down at the publish step",
        "StorageError; results stay; published later",
        down_at_the_publish_step,
    ),
    Case("s3_outages", "killed in the publish step, and back", "recovery", back_during_retries),
    Case("s3_outages", "slow: every answer waits", "recovery", upload_recovers(Fault(delay=0.2))),
    Case(
        "s3_outages",
        "silent: no answer comes",
        "StorageError after the time limit",
        upload_ends(Fault(stall_received=0), _SERVER),
    ),
    Case("s3_outages", "silent twice", "recovery", upload_recovers(Fault(stall_received=0, times=2))),
    Case(
        "s3_outages",
        "busy (503 SlowDown)",
        "StorageError, advice",
        upload_ends(Fault(answer=_BUSY), "SlowDown", _SERVER),
    ),
    Case("s3_outages", "busy twice", "recovery", upload_recovers(Fault(answer=_BUSY, times=2))),
    Case(
        "s3_outages",
        "a web page answers in its place",
        "StorageError, advice",
        web_page,
    ),
    Case(
        "s3_outages",
        "cut in a single upload",
        "StorageError; published again: whole",
        upload_ends(Fault(cut_sent=100_000), _SERVER),
    ),
    Case(
        "s3_outages",
        "cut twice in a single upload",
        "recovery",
        upload_recovers(Fault(cut_sent=100_000, times=2)),
    ),
    Case(
        "s3_outages",
        "cut in an upload of parts",
        "StorageError; published again: whole",
        upload_ends(Fault(cut_sent=2 << 20), _SERVER),
    ),
    Case(
        "s3_outages",
        "cut twice in an upload of parts",
        "recovery",
        upload_recovers(Fault(cut_sent=2 << 20, times=2)),
    ),
    Case(
        "s3_outages",
        "a bit flips on the way up",
        "StorageError; published again: whole",
        upload_ends(Fault(flip_sent=150_000), "something on the way changes what is sent", kind=StorageError),
    ),
    Case(
        "s3_outages",
        "cut in a download",
        "StorageError, no half file",
        download_ends(Fault(cut_received=1 << 20), _SERVER),
    ),
    Case(
        "s3_outages",
        "cut twice in a download",
        "recovery",
        download_recovers(Fault(cut_received=1 << 20, times=2)),
    ),
    Case(
        "s3_outages",
        "a download falls silent",
        "StorageError, no half file",
        download_ends(Fault(stall_received=1 << 20), _SERVER),
    ),
    Case(
        "s3_outages",
        "a bit flips on the way down",
        "StorageError, no half file",
        download_ends(Fault(flip_received=2 << 20), "is not what was stored", kind=DamagedError),
    ),
]
