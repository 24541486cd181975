"""Publications, against a real server: whole or refused, and completed by a second call."""

import json
import random
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from automixalign.storage import files, s3
from automixalign.storage import publication as publish
from automixalign.system.errors import StorageError
from benchmarks.servers.seaweed import seaweed
from tests.conftest import use

BUCKET = "published"
PLACE = f"s3://{BUCKET}/runs/one"


@pytest.fixture(scope="module")
def client(s3: Any) -> Any:
    """The client, once there is the bucket `BUCKET`."""
    s3.create_bucket(Bucket=BUCKET)
    return s3


class StoppedError(Exception):
    """Raised in place of a request, as if the process had ended there."""


class Traffic:
    """What is asked of the server; `stop_at`, as in `PutObject name`, ends it before that request."""

    def __init__(self, session: boto3.Session) -> None:
        self.seen: Counter[str] = Counter()
        self.stop_at = ""
        session.events.register("before-call.s3", self._look)

    def _look(self, model: Any, params: Any, **_: Any) -> None:
        self.seen[model.name] += 1
        operation, _, name = self.stop_at.partition(" ")
        if operation == model.name and params["url_path"].endswith(f"/{name}"):
            raise StoppedError

    def uploads(self) -> int:
        """Uploads since the last question."""
        count = sum(self.seen[name] for name in ("PutObject", "CreateMultipartUpload", "UploadPart"))
        self.seen.clear()
        return count


@pytest.fixture
def traffic(client: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Traffic]:
    """What the test asks of the server; the bucket is empty again afterwards."""
    session = boto3.Session()
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", session)
    yield Traffic(session)
    for key in keys(client):
        client.delete_object(Bucket=BUCKET, Key=key)


@pytest.fixture
def artifacts(tmp_path: Path) -> dict[str, Path]:
    """A folder with nested files and one of its own, and a single file."""
    return written(tmp_path / "artifacts")


def written(root: Path, **changes: bytes) -> dict[str, Path]:
    contents = {
        "model/config.json": b"{}",
        "model/weights.bin": random.Random(0).randbytes(100_000),
        "model/deep/er/a b?#%ä.txt": "ü".encode(),
        "model/empty": b"",
        "board.json": b"[]",
        "model/.hidden/file": b"not published",
        **changes,
    }
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return {"models/ama-r": root / "model", "leaderboard.json": root / "board.json"}


PUBLISHED = {
    "models/ama-r/config.json",
    "models/ama-r/weights.bin",
    "models/ama-r/deep/er/a b?#%ä.txt",
    "models/ama-r/empty",
    "leaderboard.json",
}


def keys(client: Any) -> set[str]:
    return {item["Key"] for item in client.list_objects_v2(Bucket=BUCKET).get("Contents", [])}


def tree(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def is_what_was_published(folder: Path, artifacts: dict[str, Path]) -> bool:
    model, board = artifacts["models/ama-r"], artifacts["leaderboard.json"]
    expected = {f"models/ama-r/{name}": content for name, content in tree(model).items() if name[0] != "."}
    found = tree(folder)
    found.pop(publish.MANIFEST)
    return found == {**expected, "leaderboard.json": board.read_bytes()}


@pytest.mark.parametrize("slash", ["", "/"])
def test_there_and_back(
    client: Any, traffic: Traffic, artifacts: dict[str, Path], tmp_path: Path, slash: str
) -> None:
    manifest = publish.publish(artifacts, PLACE + slash, run="run-1")
    assert manifest.run == "run-1"
    assert manifest.files.keys() == PUBLISHED
    assert keys(client) == {f"runs/one/{name}" for name in (*PUBLISHED, "manifest.json")}
    text = client.get_object(Bucket=BUCKET, Key="runs/one/manifest.json")["Body"].read()
    assert json.loads(text) == manifest.model_dump()
    weights = artifacts["models/ama-r"] / "weights.bin"
    entry = {"size": 100_000, "sha256": files.digest(weights)}
    assert manifest.files["models/ama-r/weights.bin"].model_dump() == entry
    assert publish.fetch(PLACE + slash, tmp_path / "new") == manifest
    assert is_what_was_published(tmp_path / "new", artifacts)


def test_a_folder_is_a_place_too(artifacts: dict[str, Path], tmp_path: Path, traffic: Traffic) -> None:
    """What is fetched is a publication again, of the same digest."""
    manifest = publish.publish(artifacts, str(tmp_path / "a" / "place"), run="run-1")
    assert publish.publish(artifacts, str(tmp_path / "a" / "place"), run="run-2") == manifest
    assert publish.fetch(str(tmp_path / "a" / "place"), tmp_path / "new") == manifest
    assert is_what_was_published(tmp_path / "new", artifacts)
    assert publish.fetch(str(tmp_path / "new"), tmp_path / "newer").digest == manifest.digest
    assert publish.publish(artifacts, PLACE).digest == manifest.digest
    other = publish.publish(written(tmp_path / "artifacts", **{"board.json": b"other"}), f"{PLACE}2")
    assert other.digest != manifest.digest


def test_what_has_not_changed_is_not_sent_again(
    traffic: Traffic, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    first = publish.publish(artifacts, PLACE, run="run-1")
    # The files, the manifest, and the list of what is on the way.
    assert traffic.uploads() == len(PUBLISHED) + 2
    assert publish.publish(written(tmp_path / "again"), PLACE, run="run-2", replace=True) == first
    assert traffic.uploads() == 0


def test_other_content_is_refused_unless_it_shall_replace(
    client: Any, traffic: Traffic, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    first = publish.publish(artifacts, PLACE, run="run-1")
    changed = written(tmp_path / "changed", **{"board.json": b"[1]"})
    (changed["models/ama-r"] / "empty").unlink()
    traffic.uploads()
    with pytest.raises(StorageError, match=f"{PLACE}/ holds another publication, of the run 'run-1'; "):
        publish.publish(changed, PLACE)
    assert traffic.uploads() == 0
    assert publish.fetch(PLACE, tmp_path / "before") == first
    second = publish.publish(changed, PLACE, run="run-2", replace=True)
    assert traffic.uploads() == 1 + 2
    assert second.run == "run-2"
    assert publish.fetch(PLACE, tmp_path / "after") == second
    assert is_what_was_published(tmp_path / "after", changed)
    assert "runs/one/models/ama-r/empty" not in keys(client)


def test_checkpoints_beside_a_publication_are_no_part_of_it(
    client: Any, traffic: Traffic, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    """Trainings keep them there while they last; another run's may last longer."""
    hidden = "runs/one/.checkpoints/ama-r-0/checkpoint-2/seal.json"
    client.put_object(Bucket=BUCKET, Key=hidden, Body=b"{}")
    publish.check_writable(PLACE)
    first = publish.publish(artifacts, PLACE)
    assert publish.fetch(PLACE, tmp_path / "first") == first
    assert is_what_was_published(tmp_path / "first", artifacts)
    changed = written(tmp_path / "changed", **{"board.json": b"[1]"})
    publish.publish(changed, PLACE, replace=True)
    publish.fetch(PLACE, tmp_path / "second")
    assert is_what_was_published(tmp_path / "second", changed)
    assert hidden in keys(client)


def test_a_folder_is_replaced_whole(artifacts: dict[str, Path], tmp_path: Path) -> None:
    place = tmp_path / "place"
    publish.publish(artifacts, str(place), run="run-1")
    changed = written(tmp_path / "changed", **{"board.json": b"[1]"})
    with pytest.raises(StorageError, match=f"{place} holds another publication, of the run 'run-1'; "):
        publish.publish(changed, str(place))
    publish.publish(changed, str(place), replace=True)
    publish.fetch(str(place), tmp_path / "after")
    assert is_what_was_published(tmp_path / "after", changed)
    assert {path.name for path in tmp_path.iterdir()} == {"artifacts", "changed", "place", "after"}
    (place / "leaderboard.json").write_bytes(b"[2]")
    publish.publish(changed, str(place))  # the same content, but no longer whole
    assert (place / "leaderboard.json").read_bytes() == b"[1]"


STOPS = [
    "PutObject unfinished.json",
    "DeleteObject manifest.json",
    "PutObject config.json",
    "PutObject weights.bin",
    "DeleteObject empty",
    "PutObject manifest.json",
    "DeleteObject unfinished.json",
]


@pytest.mark.parametrize("stop", STOPS)
def test_a_replacement_that_is_interrupted_is_never_taken_for_whole(
    traffic: Traffic, artifacts: dict[str, Path], tmp_path: Path, stop: str
) -> None:
    """Before any of its steps. A reader gets the old or the new one whole, or is refused."""
    publish.publish(artifacts, PLACE)
    changed = written(tmp_path / "new", **{"model/config.json": b"1", "model/weights.bin": b"1" * 100_000})
    (changed["models/ama-r"] / "empty").unlink()
    traffic.stop_at = stop
    with pytest.raises(StoppedError):
        publish.publish(changed, PLACE, replace=True)
    traffic.stop_at = ""
    step = STOPS.index(stop)
    if step < 2:
        publish.fetch(PLACE, tmp_path / "fetched")
        assert is_what_was_published(tmp_path / "fetched", artifacts)
    elif step < 6:
        with pytest.raises(StorageError, match=f"{PLACE} is no publication, .*it was not finished"):
            publish.fetch(PLACE, tmp_path / "fetched")
        assert not (tmp_path / "fetched").exists()
    publish.publish(changed, PLACE, replace=True)
    publish.fetch(PLACE, tmp_path / "after")
    assert is_what_was_published(tmp_path / "after", changed)
    traffic.uploads()
    publish.publish(changed, PLACE)
    assert traffic.uploads() == 0


def test_what_a_first_attempt_sent_is_not_sent_again(traffic: Traffic, artifacts: dict[str, Path]) -> None:
    traffic.stop_at = "PutObject manifest.json"
    with pytest.raises(StoppedError):
        publish.publish(artifacts, PLACE)
    traffic.stop_at = ""
    traffic.uploads()
    publish.publish(artifacts, PLACE)
    assert traffic.uploads() == 2


def test_half_a_publication_is_refused(
    client: Any, traffic: Traffic, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(StorageError, match=f"{PLACE} is no publication, .*no manifest.json; check the place"):
        publish.fetch(PLACE, tmp_path / "new")
    publish.publish(artifacts, PLACE)
    for name in ("config.json", "deep/er/a b?#%ä.txt"):
        client.delete_object(Bucket=BUCKET, Key=f"runs/one/models/ama-r/{name}")
    client.put_object(Bucket=BUCKET, Key="runs/one/models/ama-r/weights.bin", Body=b"short")
    client.put_object(Bucket=BUCKET, Key="runs/one/further", Body=b"")
    with pytest.raises(StorageError) as refusal:
        publish.fetch(PLACE, tmp_path / "new")
    for fault in (
        "further is not in its manifest",
        "models/ama-r/config.json is missing",
        "models/ama-r/deep/er/a b?#%ä.txt is missing",
        "models/ama-r/weights.bin has 5 bytes, not 100000",
    ):
        assert fault in str(refusal.value)
    assert not (tmp_path / "new").exists()
    client.delete_object(Bucket=BUCKET, Key="runs/one/further")
    traffic.uploads()
    publish.publish(artifacts, PLACE)
    assert traffic.uploads() == 3 + 2
    publish.fetch(PLACE, tmp_path / "new")
    assert is_what_was_published(tmp_path / "new", artifacts)


@pytest.mark.parametrize("keep_metadata", [True, False])
def test_a_flipped_byte_is_noticed(
    client: Any, traffic: Traffic, artifacts: dict[str, Path], tmp_path: Path, keep_metadata: bool
) -> None:
    publish.publish(artifacts, PLACE)
    key = "runs/one/models/ama-r/weights.bin"
    found = client.get_object(Bucket=BUCKET, Key=key)
    body = bytearray(found["Body"].read())
    body[70_000] ^= 1
    client.put_object(
        Bucket=BUCKET, Key=key, Body=bytes(body), Metadata=found["Metadata"] if keep_metadata else {}
    )
    with pytest.raises(StorageError, match=f"s3://{BUCKET}/{key} is not what was stored: its SHA-256 is"):
        publish.fetch(PLACE, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_flipped_byte_in_a_folder_is_noticed(artifacts: dict[str, Path], tmp_path: Path) -> None:
    publish.publish(artifacts, str(tmp_path / "place"))
    (tmp_path / "place" / "leaderboard.json").write_bytes(b"[[")
    with pytest.raises(StorageError, match=r"place/leaderboard\.json is not what was published: its SHA-256"):
        publish.fetch(str(tmp_path / "place"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_files_of_somebody_else_are_left_alone(
    client: Any, traffic: Traffic, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    client.put_object(Bucket=BUCKET, Key="runs/one/leaderboard.json", Body=b"precious")
    with pytest.raises(StorageError, match=rf"{PLACE}/ holds files of no publication: leaderboard\.json; "):
        publish.publish(artifacts, PLACE, replace=True)
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / ".git").write_text("precious")
    with pytest.raises(StorageError, match=r"place holds files of no publication: \.git; "):
        publish.publish(artifacts, str(tmp_path / "place"), replace=True)
    with pytest.raises(StorageError, match=r"place holds something already; "):
        publish.fetch(PLACE, tmp_path / "place")
    (tmp_path / "file").write_text("precious")
    with pytest.raises(StorageError, match=r"file is not a folder; "):
        publish.publish(artifacts, str(tmp_path / "file"), replace=True)
    assert keys(client) == {"runs/one/leaderboard.json"}
    assert [path.read_text() for path in (tmp_path / "place" / ".git", tmp_path / "file")] == ["precious"] * 2


@pytest.mark.parametrize("name", ["manifest.json", "unfinished.json"])
@pytest.mark.parametrize("text", [b"{", b'{"files": 1}', b'{"files": {"../x": {"size": 1, "sha256": "a"}}}'])
def test_manifests_that_are_none(
    client: Any, traffic: Traffic, artifacts: dict[str, Path], tmp_path: Path, name: str, text: bytes
) -> None:
    client.put_object(Bucket=BUCKET, Key=f"runs/one/{name}", Body=text)
    with pytest.raises(StorageError, match=f"{PLACE}/{name} is not part of a publication: "):
        publish.publish(artifacts, PLACE, replace=True)
    with pytest.raises(StorageError, match=PLACE):
        publish.fetch(PLACE, tmp_path / "new")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({}, "nothing to publish"),
        ({"a": "missing"}, "the artifact a cannot be published: .*missing holds no file"),
        ({"a": "nothing"}, "the artifact a cannot be published: .*nothing holds no file"),
        ({"manifest.json": "file"}, r"no artifact may be called manifest\.json"),
        ({"../a": "file"}, r"'\.\./a' is no name of a file below a publication"),
        ({"/a": "file"}, "'/a' is no name of a file below a publication"),
        ({"a": "file", "a/b": "file"}, "a cannot be both a file and the folder of a/b"),
        ({"a/file": "file", "a": "folder"}, "two artifacts have a file a/file"),
    ],
)
def test_artifacts_that_are_refused(tmp_path: Path, names: dict[str, str], message: str) -> None:
    (tmp_path / "nothing" / "at" / "all").mkdir(parents=True)
    (tmp_path / "folder").mkdir()
    for file in ("file", "folder/file"):
        (tmp_path / file).touch()
    with pytest.raises(StorageError, match=message):
        publish.publish({name: tmp_path / path for name, path in names.items()}, str(tmp_path / "place"))
    assert not (tmp_path / "place").exists()


def test_a_file_that_changes_meanwhile(
    traffic: Traffic, artifacts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = s3.Prefix.upload

    def change(self: Any, name: str, *rest: Any) -> None:
        artifacts["leaderboard.json"].write_bytes(b"{}")
        upload(self, name, *rest)

    monkeypatch.setattr(s3.Prefix, "upload", change)
    with pytest.raises(StorageError, match=r"board\.json was changed while it was published"):
        publish.publish(artifacts, PLACE)
    with pytest.raises(StorageError, match="is no publication"):
        publish.fetch(PLACE, tmp_path / "new")


def test_writable_places(client: Any, traffic: Traffic, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for place in (PLACE, f"s3://{BUCKET}", tmp_path / "there", tmp_path / "a" / "b"):
        publish.check_writable(str(place))
    assert keys(client) == set()
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (
            "s3://no-such-bucket/x",
            r"^s3://no-such-bucket/x/\.writable-\w+ cannot be written: .*; create the bucket",
        ),
        ("s3:///x", "not of the form s3://bucket/key"),
        ("gs://bucket/x", "'gs://bucket/x' is neither s3://bucket/prefix nor a folder"),
        ("", "'' is neither s3://bucket/prefix nor a folder"),
        ("/proc/x", "^/proc/x cannot be written: .*; name another folder"),
        ("/dev/null", "^/dev/null is not a folder; name another place"),
        ("/dev/null/x", "^/dev/null/x cannot be written: .*; name another folder"),
    ],
)
def test_places_that_are_not_writable(client: Any, place: str, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        publish.check_writable(place)


def test_a_server_that_is_killed_in_the_middle_of_an_upload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second call, after the server is up again on its folder, completes what the first began."""
    monkeypatch.setattr(s3, "_PART_BYTES", 5 << 20)
    (tmp_path / "server").mkdir()
    (tmp_path / "a").write_bytes(b"small")
    (tmp_path / "b").write_bytes(random.Random(0).randbytes(40 << 20))
    artifacts = {name: tmp_path / name for name in ("a", "b")}
    place = "s3://ready/run"
    with seaweed(tmp_path / "server") as server:
        use(server, monkeypatch)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
        session = boto3.Session()
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", session)
        parts, lock = Counter[str](), threading.Lock()

        def kill(http_response: Any, **_: Any) -> None:
            with lock:
                parts["done"] += http_response.status_code == 200
                if parts["done"] == 3:
                    server.kill()

        session.events.register("after-call.s3.UploadPart", kill)
        with pytest.raises(
            StorageError, match=rf"{place}/b cannot be written: .*; check that the server is up"
        ):
            publish.publish(artifacts, place)
        assert parts["done"] >= 3
        with pytest.raises(
            StorageError, match=f"{place}/manifest.json cannot be read: .*; check that the server"
        ):
            publish.fetch(place, tmp_path / "new")
    with seaweed(tmp_path / "server", server.ports) as server:
        use(server, monkeypatch)
        with pytest.raises(StorageError, match=f"{place} is no publication, .*it was not finished"):
            publish.fetch(place, tmp_path / "new")
        assert not (tmp_path / "new").exists()
        manifest = publish.publish(artifacts, place)
        assert publish.fetch(place, tmp_path / "new") == manifest
    for name, path in artifacts.items():
        assert (tmp_path / "new" / name).read_bytes() == path.read_bytes()
