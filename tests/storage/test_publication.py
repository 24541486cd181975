"""Publications, in folders and on a real S3 server: whole or refused, and completed by a second call."""

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
from automixalign.storage.publication import MANIFEST, Manifest, check_free, check_writable, fetch, publish
from automixalign.system.errors import StorageError
from benchmarks.servers.seaweed import seaweed
from tests.conftest import use

BUCKET = "published"
PREFIX = f"s3://{BUCKET}/runs/one"


class StoppedError(Exception):
    """Raised instead of a request, as if the process had ended there."""


class Bucket:
    """The objects below `PREFIX`, and the requests that the test sends to the server."""

    uri = PREFIX

    def __init__(self, client: Any, session: boto3.Session) -> None:
        self.client, self.requests, self.stop_at = client, Counter[str](), ""
        session.events.register("before-call.s3", self._count)

    def _count(self, model: Any, params: Any, **_: Any) -> None:
        self.requests[model.name] += 1
        operation, _, name = self.stop_at.partition(" ")
        if operation == model.name and params["url_path"].endswith(f"/{name}"):
            raise StoppedError

    def uploads(self) -> int:
        """Uploads since the last call."""
        count = sum(self.requests[name] for name in ("PutObject", "CreateMultipartUpload", "UploadPart"))
        self.requests.clear()
        return count

    def names(self) -> set[str]:
        objects = self.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        return {item["Key"].removeprefix("runs/one/") for item in objects}

    def read(self, name: str) -> bytes:
        return bytes(self.client.get_object(Bucket=BUCKET, Key=f"runs/one/{name}")["Body"].read())

    def write(self, name: str, content: bytes, **options: Any) -> None:
        self.client.put_object(Bucket=BUCKET, Key=f"runs/one/{name}", Body=content, **options)

    def delete(self, name: str) -> None:
        self.client.delete_object(Bucket=BUCKET, Key=f"runs/one/{name}")


class Folder:
    """A folder with the methods of `Bucket`."""

    def __init__(self, path: Path) -> None:
        self.path, self.uri = path, str(path)

    def names(self) -> set[str]:
        return set(contents(self.path))

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_bytes(content)

    def delete(self, name: str) -> None:
        (self.path / name).unlink()


Store = Bucket | Folder


@pytest.fixture(scope="module")
def client(s3: Any) -> Any:
    """A client of the server that holds `BUCKET`."""
    s3.create_bucket(Bucket=BUCKET)
    return s3


@pytest.fixture
def bucket(client: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """The bucket, empty again after the test."""
    session = boto3.Session()
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", session)
    yield Bucket(client, session)
    for item in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=item["Key"])


@pytest.fixture(params=["prefix", "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A destination of each kind."""
    if request.param == "folder":
        return Folder(tmp_path / "deep" / "store")
    bucket: Bucket = request.getfixturevalue("bucket")
    return bucket


@pytest.fixture
def artifacts(tmp_path: Path) -> dict[str, Path]:
    """A folder with nested and hidden files, and a single file."""
    return write_artifacts(tmp_path / "artifacts")


def write_artifacts(root: Path, **changes: bytes) -> dict[str, Path]:
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
        Folder(root).write(name, content)
    return {"models/ama-r": root / "model", "leaderboard.json": root / "board.json"}


NAMES = {f"models/ama-r/{name}" for name in ("config.json", "weights.bin", "deep/er/a b?#%ä.txt", "empty")}
NAMES |= {"leaderboard.json"}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in files.list_files(folder, hidden=True)
    }


def assert_fetches(uri: str, folder: Path, artifacts: dict[str, Path]) -> Manifest:
    manifest = fetch(uri, folder)
    fetched = contents(folder)
    del fetched[MANIFEST]
    expected = {f"models/ama-r/{k}": v for k, v in contents(artifacts["models/ama-r"]).items() if k[0] != "."}
    assert fetched == {**expected, "leaderboard.json": artifacts["leaderboard.json"].read_bytes()}
    return manifest


def assert_refused(uri: str, folder: Path, *messages: str) -> None:
    with pytest.raises(StorageError) as refusal:
        fetch(uri, folder)
    assert not [message for message in messages if message not in str(refusal.value)], refusal.value
    assert not folder.exists()


@pytest.mark.parametrize("slash", ["", "/"])
def test_publish_and_fetch(store: Store, artifacts: dict[str, Path], tmp_path: Path, slash: str) -> None:
    manifest = publish(artifacts, store.uri + slash, run="run-1")
    assert (manifest.run, manifest.files.keys(), store.names()) == ("run-1", NAMES, NAMES | {MANIFEST})
    assert json.loads(store.read(MANIFEST)) == manifest.model_dump()
    digest = files.digest(artifacts["models/ama-r"] / "weights.bin")
    assert manifest.files["models/ama-r/weights.bin"].model_dump() == {"size": 100_000, "sha256": digest}
    assert assert_fetches(store.uri + slash, tmp_path / "new", artifacts) == manifest
    assert fetch(str(tmp_path / "new"), tmp_path / "newer") == manifest, "a copy is a publication too"


def test_equal_content_has_equal_digests(bucket: Bucket, artifacts: dict[str, Path], tmp_path: Path) -> None:
    digests = [publish(artifacts, uri).digest for uri in (PREFIX, str(tmp_path / "store"))]
    digests.append(publish(write_artifacts(tmp_path / "other", **{"board.json": b"1"}), f"{PREFIX}2").digest)
    assert digests[0] == digests[1] != digests[2]


def test_only_missing_files_are_sent(bucket: Bucket, artifacts: dict[str, Path], tmp_path: Path) -> None:
    bucket.stop_at = "PutObject manifest.json"
    with pytest.raises(StoppedError):
        publish(artifacts, PREFIX)
    bucket.stop_at = ""
    assert bucket.uploads() == len(NAMES) + 2, "the files, the list of files to come, and the manifest"
    first = publish(artifacts, PREFIX, run="run-1")
    assert bucket.uploads() == 2
    assert publish(write_artifacts(tmp_path / "again"), PREFIX, run="run-2", replace=True) == first
    changed = write_artifacts(tmp_path / "changed", **{"board.json": b"[1]"})
    with pytest.raises(StorageError, match="holds another publication"):
        publish(changed, PREFIX)
    assert bucket.uploads() == 0
    publish(changed, PREFIX, replace=True)
    assert bucket.uploads() == 1 + 2
    bucket.delete("models/ama-r/config.json")
    bucket.write("models/ama-r/weights.bin", b"short")
    bucket.uploads()
    publish(changed, PREFIX)
    assert bucket.uploads() == 2 + 2


def test_other_content_needs_replace(store: Store, artifacts: dict[str, Path], tmp_path: Path) -> None:
    first = publish(artifacts, store.uri, run="run-1")
    changed = write_artifacts(tmp_path / "changed", **{"board.json": b"[1]"})
    (changed["models/ama-r"] / "empty").unlink()
    with pytest.raises(StorageError, match=f"{store.uri}/? holds another publication, 'run-1'; "):
        publish(changed, store.uri)
    assert publish(artifacts, store.uri, run="run-2") == fetch(store.uri, tmp_path / "before") == first
    second = publish(changed, store.uri, run="run-2", replace=True)
    assert second.run == "run-2"
    assert assert_fetches(store.uri, tmp_path / "after", changed) == second
    assert store.names() == NAMES - {"models/ama-r/empty"} | {MANIFEST}
    store.write("leaderboard.json", b"[2]")
    publish(changed, store.uri)
    assert store.read("leaderboard.json") == b"[1]", "the content is the same, but was no longer whole"
    if isinstance(store, Folder):
        assert [path.name for path in store.path.parent.iterdir()] == ["store"], "no temporary folder remains"


def test_a_destination_is_checked_before_a_run(store: Store, artifacts: dict[str, Path]) -> None:
    check_free(store.uri, False, "first")
    publish(artifacts, store.uri, run="first")
    check_free(store.uri, False, "first")
    with pytest.raises(StorageError, match="another publication, 'first'"):
        check_free(store.uri, False, "second")
    check_free(store.uri, True, "second")
    store.write("thesis.tex", b"years")
    for run in ("first", "second"):
        with pytest.raises(StorageError, match=r"files of no publication: thesis\.tex"):
            check_free(store.uri, True, run)


def test_checkpoints_beside_a_publication_are_not_part_of_it(
    bucket: Bucket, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    """Trainings store them; those of another run may remain longer."""
    checkpoint = ".checkpoints/ama-r-0/checkpoint-2/seal.json"
    bucket.write(checkpoint, b"{}")
    check_writable(PREFIX)
    first = publish(artifacts, PREFIX)
    assert assert_fetches(PREFIX, tmp_path / "first", artifacts) == first
    changed = write_artifacts(tmp_path / "changed", **{"board.json": b"[1]"})
    publish(changed, PREFIX, replace=True)
    assert_fetches(PREFIX, tmp_path / "second", changed)
    assert checkpoint in bucket.names()


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
def test_an_interrupted_replacement_is_never_taken_for_whole(
    bucket: Bucket, artifacts: dict[str, Path], tmp_path: Path, stop: str
) -> None:
    """Before each of its requests. A reader gets the old or the new one whole, or is refused."""
    publish(artifacts, PREFIX)
    changed = write_artifacts(
        tmp_path / "new", **{"model/config.json": b"1", "model/weights.bin": b"1" * 100_000}
    )
    (changed["models/ama-r"] / "empty").unlink()
    bucket.stop_at = stop
    with pytest.raises(StoppedError):
        publish(changed, PREFIX, replace=True)
    bucket.stop_at = ""
    step = STOPS.index(stop)
    if step < 2:
        assert_fetches(PREFIX, tmp_path / "fetched", artifacts)
    elif step < 6:
        assert_refused(PREFIX, tmp_path / "fetched", f"{PREFIX} is no publication, ", "it was not finished")
    publish(changed, PREFIX, replace=True)
    assert_fetches(PREFIX, tmp_path / "after", changed)
    bucket.uploads()
    publish(changed, PREFIX)
    assert bucket.uploads() == 0


def test_half_a_publication_is_refused(store: Store, artifacts: dict[str, Path], tmp_path: Path) -> None:
    missing = (f"{store.uri} is no publication", "no manifest.json; check the place")
    assert_refused(store.uri, tmp_path / "new", *missing)
    publish(artifacts, store.uri)
    for name in ("config.json", "deep/er/a b?#%ä.txt"):
        store.delete(f"models/ama-r/{name}")
    store.write("models/ama-r/weights.bin", b"short")
    store.write("further", b"")
    assert_refused(
        store.uri,
        tmp_path / "new",
        "further is not in its manifest",
        "models/ama-r/config.json is missing",
        "models/ama-r/deep/er/a b?#%ä.txt is missing",
        "models/ama-r/weights.bin has 5 bytes, not 100000",
    )
    store.delete("further")
    publish(artifacts, store.uri)
    assert_fetches(store.uri, tmp_path / "new", artifacts)


@pytest.mark.parametrize("with_metadata", [True, False])
def test_a_flipped_byte(store: Store, artifacts: dict[str, Path], tmp_path: Path, with_metadata: bool) -> None:
    name = "models/ama-r/weights.bin"
    sha256 = publish(artifacts, store.uri).files[name].sha256
    content = bytearray(store.read(name))
    content[70_000] ^= 1
    if isinstance(store, Bucket):
        store.write(name, bytes(content), Metadata={s3.SHA256: sha256} if with_metadata else {})
        message = f"{store.uri}/{name} is not what was stored: its SHA-256 is"
    else:
        store.write(name, bytes(content))
        message = f"{store.uri}/{name} is not what was published: its SHA-256 is"
    assert_refused(store.uri, tmp_path / "new", message)


@pytest.mark.parametrize(
    ("kind", "name"), [("prefix", "leaderboard.json"), ("folder", ".git"), ("folder", "leaderboard.json")]
)
def test_foreign_files_stay(
    bucket: Bucket, artifacts: dict[str, Path], tmp_path: Path, kind: str, name: str
) -> None:
    store = bucket if kind == "prefix" else Folder(tmp_path / "store")
    store.write(name, b"precious")
    with pytest.raises(StorageError, match=f"{store.uri}/? holds files of no publication: {name}; "):
        publish(artifacts, store.uri, replace=True)
    assert (store.names(), store.read(name)) == ({name}, b"precious")


def test_a_full_target_and_a_file_are_refused(artifacts: dict[str, Path], tmp_path: Path) -> None:
    publish(artifacts, str(tmp_path / "store"))
    with pytest.raises(StorageError, match=r"artifacts exists and is not an empty folder; "):
        fetch(str(tmp_path / "store"), tmp_path / "artifacts")
    (tmp_path / "file").write_text("precious")
    with pytest.raises(StorageError, match=r"file is not a folder; "):
        publish(artifacts, str(tmp_path / "file"), replace=True)
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("name", ["manifest.json", "unfinished.json"])
@pytest.mark.parametrize("text", [b"{", b'{"files": 1}', b'{"files": {"../x": {"size": 1, "sha256": "a"}}}'])
def test_documents_of_other_programs_are_refused(
    bucket: Bucket, artifacts: dict[str, Path], tmp_path: Path, name: str, text: bytes
) -> None:
    bucket.write(name, text)
    with pytest.raises(StorageError, match=f"{PREFIX}/{name} is not part of a publication: "):
        publish(artifacts, PREFIX, replace=True)
    assert_refused(PREFIX, tmp_path / "new", PREFIX)


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "a//x", ".", ""])
def test_a_manifest_cannot_name_files_elsewhere(name: str) -> None:
    with pytest.raises(ValueError, match="is no name of a file below a publication"):
        Manifest.model_validate({"files": {name: {"size": 0, "sha256": "0" * 64}}})


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
    for file in ("file", "folder/file"):
        Folder(tmp_path).write(file, b"")
    with pytest.raises(StorageError, match=message):
        publish({name: tmp_path / path for name, path in names.items()}, str(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_a_file_that_changes_meanwhile(
    bucket: Bucket, artifacts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = s3.Prefix.upload

    def change(self: Any, name: str, *rest: Any) -> None:
        artifacts["leaderboard.json"].write_bytes(b"{}")
        upload(self, name, *rest)

    monkeypatch.setattr(s3.Prefix, "upload", change)
    with pytest.raises(StorageError, match=r"board\.json was changed while it was published"):
        publish(artifacts, PREFIX)
    assert_refused(PREFIX, tmp_path / "new", "is no publication")


def test_writable_targets(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (PREFIX, f"s3://{BUCKET}", tmp_path / "empty", tmp_path / "a" / "b"):
        check_writable(str(path))
    assert bucket.names() == set()
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize(
    ("target", "message"),
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
def test_targets_that_are_not_writable(client: Any, target: str, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        check_writable(target)


def test_a_server_that_is_killed_during_an_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second call, with the server up again on its folder, completes what the first began."""
    monkeypatch.setattr(s3, "_PART_BYTES", 5 << 20)
    (tmp_path / "server").mkdir()
    (tmp_path / "a").write_bytes(b"small")
    (tmp_path / "b").write_bytes(random.Random(0).randbytes(40 << 20))
    artifacts = {name: tmp_path / name for name in ("a", "b")}
    uri = "s3://ready/run"
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
        with pytest.raises(StorageError, match=f"{uri}/b cannot be written: .*; check that the server is up"):
            publish(artifacts, uri)
        assert parts["done"] >= 3
        assert_refused(
            uri, tmp_path / "new", f"{uri}/manifest.json cannot be read: ", "; check that the server"
        )
    with seaweed(tmp_path / "server", server.ports) as server:
        use(server, monkeypatch)
        assert_refused(uri, tmp_path / "new", f"{uri} is no publication, ", "it was not finished")
        manifest = publish(artifacts, uri)
        assert fetch(uri, tmp_path / "new") == manifest
    for name, path in artifacts.items():
        assert (tmp_path / "new" / name).read_bytes() == path.read_bytes()
