"""S3, on a real server."""

import hashlib
import json
import random
import traceback
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ConnectionClosedError

from automixalign.config.data import SourceSpec
from automixalign.config.sources import parse_base_model, parse_task
from automixalign.storage import files
from automixalign.storage import s3 as library
from automixalign.system.errors import StorageError
from benchmarks import s3_memory
from tests.data.reading.reading import compress, open_rows

BUCKET = "preferences"
URI = f"s3://{BUCKET}"


@pytest.fixture(scope="module")
def client(s3: Any) -> Any:
    """A client of the server that holds `BUCKET`."""
    s3.create_bucket(Bucket=BUCKET)
    return s3


@pytest.fixture
def bucket(client: Any) -> Iterator[Any]:
    """The client; the bucket is empty again after each test."""
    yield client
    for item in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=item["Key"])


@pytest.fixture
def new_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make boto3 read the environment again, as a new process would."""
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)


def put(client: Any, **objects: str) -> None:
    for key, text in objects.items():
        client.put_object(Bucket=BUCKET, Key=key, Body=text.encode())


def rows(*prompts: str) -> str:
    return "".join(json.dumps({"prompt": p, "chosen": "a", "rejected": "b"}) + "\n" for p in prompts)


def prompts(source: str) -> dict[str, str]:
    return {row.where.removeprefix(f"{URI}/"): row.data["prompt"] for row in open_rows(source).rows}


TREE = {
    "data/a.jsonl": rows("one", "two"),
    "data/sub/b.jsonl": rows("three"),
    "data/notes.txt": "no rows",
    "data2/c.jsonl": rows("four"),
    "odd/what?#1 %20ä.jsonl": rows("odd"),
    "odd/what": "wrong",
}
DATA = {"data/a.jsonl:1": "one", "data/a.jsonl:2": "two", "data/sub/b.jsonl:1": "three"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("data/sub/b.jsonl", {"data/sub/b.jsonl:1": "three"}),
        ("data", DATA),
        ("data/", DATA),
        ("odd/what?#1 %20ä.jsonl", {"odd/what?#1 %20ä.jsonl:1": "odd"}),
    ],
)
def test_a_task_reads_an_object_or_a_prefix(bucket: Any, source: str, expected: dict[str, str]) -> None:
    put(bucket, **TREE)
    assert prompts(f"{URI}/{source}") == expected


def test_a_malformed_row_is_named_by_its_uri(bucket: Any) -> None:
    put(bucket, **{"data/a.jsonl": rows("one") + "{"})
    _, bad = open_rows(f"{URI}/data").rows
    assert bad.where == f"{URI}/data/a.jsonl:2"
    assert "not a JSON document" in str(bad.data)


def test_a_compressed_object_is_read(bucket: Any) -> None:
    bucket.put_object(Bucket=BUCKET, Key="data/a.jsonl.gz", Body=compress(rows("one").encode(), ".gz"))
    for source in ("data", "data/a.jsonl.gz"):
        assert prompts(f"{URI}/{source}") == {"data/a.jsonl.gz:1": "one"}


def test_a_prefix_has_the_splits_of_a_folder(bucket: Any) -> None:
    put(bucket, **{"data/train.jsonl": rows("one"), "data/test.jsonl": rows("two")})
    assert open_rows(f"{URI}/data").prompts == ["one"]
    assert open_rows(f"{URI}/data", split="test").prompts == ["two"]


def test_a_prefix_ends_at_a_slash(bucket: Any) -> None:
    keys = ["data", "data/a", "data/b/c", "data.jsonl", "data2/d", "dat", "other"]
    put(bucket, **dict.fromkeys(keys, "x"))
    assert list(library.list_objects(f"{URI}/data")) == ["data", "data/a", "data/b/c"]
    assert list(library.list_objects(f"{URI}/data/")) == ["data/a", "data/b/c"]
    assert sorted(library.list_objects(URI)) == sorted(keys)


def test_download_keeps_the_tree(bucket: Any, tmp_path: Path) -> None:
    put(bucket, **{"m/config.json": "1", "m/sub/weights": "2"})
    bucket.put_object(Bucket=BUCKET, Key="m/empty/", Body=b"")
    folder = library.download(f"{URI}/m", tmp_path)
    assert {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()} == {
        "config.json": "1",
        "sub/weights": "2",
    }


def test_the_fingerprint_follows_the_content(bucket: Any) -> None:
    sources = (parse_task("task", SourceSpec(path=f"{URI}/data")), parse_base_model(f"{URI}/data"))
    fingerprints = []
    for change in ({"data/a": "one"}, {"data/a": "two"}, {"data/b": "one"}, {"data/a": "one"}):
        put(bucket, **change)
        fingerprints.append([source.fingerprint() for source in sources])
        assert [source.fingerprint() for source in sources] == fingerprints[-1]
    assert [len(set(each)) for each in zip(*fingerprints, strict=True)] == [4, 4]
    put(bucket, **{"data2/x": "neighbour"})
    assert [source.fingerprint() for source in sources] == fingerprints[-1]


@pytest.mark.parametrize("call", ["read", "fingerprint"])
@pytest.mark.parametrize(
    "source", [f"{URI}/missing.jsonl", "s3://no-such-bucket/file.jsonl", "s3://Bad_Bucket!/x"]
)
def test_a_missing_object_is_named(bucket: Any, call: str, source: str) -> None:
    put(bucket, **{"missing.jsonl.bak": "x"})
    with pytest.raises(StorageError) as refusal:
        prompts(source) if call == "read" else parse_task("task", SourceSpec(path=source)).fingerprint()
    assert source in str(refusal.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", ": .*SignatureDoesNotMatch.*; check AWS_ACCESS_KEY_ID and "),
        ("AWS_ENDPOINT_URL", "no url", ""),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", ""),
        ("AWS_PROFILE", "nobody", ""),
    ],
)
@pytest.mark.usefixtures("new_session")
def test_wrong_setups(bucket: Any, monkeypatch: pytest.MonkeyPatch, key: str, value: str, message: str) -> None:
    put(bucket, **{"file.jsonl": rows("one")})
    monkeypatch.setenv(key, value)
    with pytest.raises(StorageError, match=rf"{URI}/file\.jsonl cannot be listed{message}"):
        prompts(f"{URI}/file.jsonl")


@pytest.mark.parametrize("uri", ["s3://", "s3:///key", "s3:bucket/key", "http://bucket/key"])
def test_malformed_uris(uri: str) -> None:
    with pytest.raises(StorageError, match="not of the form s3://bucket/key"):
        library.split_uri(uri)


def upload(uri: str, path: Path) -> None:
    folder, _, name = uri.rpartition("/")
    library.Prefix(folder).upload(name, path, path.stat().st_size, files.digest(path))


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> boto3.Session:
    """A session for new clients, with hooks of this test only."""
    session = boto3.Session()
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", session)
    return session


@pytest.mark.parametrize("size", [0, 1, 5_000_000, 12_000_001])
def test_upload_and_download(bucket: Any, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty, small, whole as a single part, and in three parts."""
    monkeypatch.setattr(library, "_PART_BYTES", 5 << 20)
    (tmp_path / "file").write_bytes(random.Random(size).randbytes(size))
    upload(f"{URI}/deep/object", tmp_path / "file")
    head = bucket.head_object(Bucket=BUCKET, Key="deep/object")
    assert head["Metadata"] == {library.SHA256: files.digest(tmp_path / "file")}
    assert head["ETag"].strip('"').endswith("-3") == (size > 10_000_000)
    fetched = library.download(f"{URI}/deep/object", tmp_path / "new")
    assert fetched == tmp_path / "new" / "object"
    assert fetched.read_bytes() == (tmp_path / "file").read_bytes()
    assert [path.name for path in fetched.parent.iterdir()] == ["object"]


def test_a_flipped_byte_is_noticed_by_the_digest_in_the_metadata(bucket: Any, tmp_path: Path) -> None:
    body = b"some content"
    digest = hashlib.sha256(body).hexdigest()
    bucket.put_object(Bucket=BUCKET, Key="a/b", Body=b"Some content", Metadata={library.SHA256: digest})
    with pytest.raises(
        StorageError, match=rf"{URI}/a/b is not what was stored: its SHA-256 is \w+, not {digest}"
    ):
        library.download(f"{URI}/a", tmp_path / "new")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ETag": '"5d41402abc4b2a76b9719d911017c592"'}, None),
        ({"ETag": '"5d41402abc4b2a76b9719d911017c593"'}, "its MD5 is 5d41402abc4b2a76b9719d911017c592, not "),
        ({"ETag": '"5d41402abc4b2a76b9719d911017c593-2"'}, None),
        ({"ETag": '"00000000000000000000000000000000"', "ServerSideEncryption": "aws:kms"}, None),
        ({"ETag": '"5d41402abc4b2a76b9719d911017c593"', "SSECustomerAlgorithm": "AES256"}, None),
        ({"ETag": '"x"', "ContentLength": 6}, "5 bytes arrived of 6"),
    ],
)
def test_downloads_match_size_and_etag(tmp_path: Path, change: dict[str, Any], message: str | None) -> None:
    (tmp_path / "file").write_bytes(b"hello")
    head = {"ContentLength": 5, "Metadata": {}, **change}
    if message is None:
        library._verify("s3://b/k", tmp_path / "file", head, None)
    else:
        with pytest.raises(StorageError, match=rf"^s3://b/k is not what was stored: {message}"):
            library._verify("s3://b/k", tmp_path / "file", head, None)


def test_a_broken_transfer_is_retried(
    bucket: Any, tmp_path: Path, session: boto3.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is lost twice in the middle of an upload of several parts."""
    monkeypatch.setattr(library, "_PART_BYTES", 5 << 20)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    (tmp_path / "file").write_bytes(random.Random(1).randbytes(12_000_000))
    sent = iter(range(99))

    def lose(request: Any, **_: Any) -> None:
        if next(sent) in (1, 2):
            raise ConnectionClosedError(endpoint_url=request.url)

    session.events.register("before-send.s3.UploadPart", lose)
    upload(f"{URI}/object", tmp_path / "file")
    assert next(sent) == 5
    assert bucket.head_object(Bucket=BUCKET, Key="object")["ContentLength"] == 12_000_000


@pytest.mark.parametrize(("attempts", "sent"), [(None, 8), ("2", 2)])
def test_attempts_are_bounded_by_default_and_by_the_environment(
    session: boto3.Session, monkeypatch: pytest.MonkeyPatch, attempts: str | None, sent: int
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    if attempts:
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", attempts)
    else:
        monkeypatch.delenv("AWS_MAX_ATTEMPTS", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    urls: list[str] = []
    session.events.register("before-send.s3", lambda request, **_: urls.append(request.url))
    with pytest.raises(
        StorageError, match=rf"{URI}/x cannot be written: Could not connect .*; check that the server"
    ):
        library.Prefix(URI).write("x", b"")
    assert len(urls) == sent


FAULTS = [
    *product(
        ["wrong key", "server down", "no credentials"], ["write", "upload", "read", "holds", "sizes", "delete"]
    ),
    # For a request about one object, a server only answers that the object is missing.
    *product(["missing bucket"], ["write", "upload", "read", "sizes"]),
]


@pytest.mark.usefixtures("new_session")
@pytest.mark.parametrize(("fault", "action"), FAULTS)
def test_every_failure_names_the_object_and_what_to_do(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str, fault: str
) -> None:
    uri, advice = f"{URI}/p", "AWS_ACCESS_KEY_ID"
    if fault == "wrong key":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    elif fault == "missing bucket":
        uri, advice = "s3://no-such-bucket/p", "bucket"
    elif fault == "server down":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:very-secret@127.0.0.1:9")
        advice = "check that the server is up and that AWS_ENDPOINT_URL is its address"
    else:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    prefix = library.Prefix(uri)
    (tmp_path / "file").write_bytes(b"x")
    calls: dict[str, Callable[[], object]] = {
        "write": lambda: prefix.write("x", b""),
        "upload": lambda: prefix.upload("x", tmp_path / "file", 1, files.digest(tmp_path / "file")),
        "read": lambda: prefix.read("x"),
        "holds": lambda: prefix.holds("x", 1, ""),
        "sizes": prefix.sizes,
        "delete": lambda: prefix.delete("x"),
    }
    with pytest.raises(StorageError) as refusal:
        calls[action]()
    message = str(refusal.value)
    assert message.startswith(f"{uri}/{'' if action == 'sizes' else 'x'} cannot be ")
    assert advice in message.rpartition("; ")[2]
    assert "very-secret" not in "".join(traceback.format_exception(refusal.value))


def test_a_secret_that_cannot_be_sent_is_not_shown(
    bucket: Any, monkeypatch: pytest.MonkeyPatch, session: boto3.Session
) -> None:
    """A token with a line end, as in a Secret that was made from a file."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", "very-secret\n")
    with pytest.raises(StorageError, match=rf"{URI}/x cannot be written") as refusal:
        library.Prefix(URI).write("x", b"")
    assert "very-secret" not in "".join(traceback.format_exception(refusal.value))


def test_objects_are_named_below_their_prefix(bucket: Any) -> None:
    put(bucket, **{"p/a": "1", "p/b/c": "22", "p/": "", "p2/x": "x", "p": "x"})
    for uri in (f"{URI}/p", f"{URI}/p/"):
        prefix = library.Prefix(uri)
        assert prefix.sizes() == {"a": 1, "b/c": 2}
        assert (prefix.read("b/c"), prefix.read("c")) == (b"22", None)
    assert library.Prefix(URI).sizes() == {"p": 1, "p/a": 1, "p/b/c": 2, "p2/x": 1}
    assert library.Prefix(f"{URI}/nothing").sizes() == {}
    prefix.delete("a")
    prefix.delete("a")
    assert prefix.sizes() == {"b/c": 2}


def test_memory_stays_flat(s3: Any, tmp_path: Path) -> None:
    result = s3_memory.measure("s3://ready/memory", tmp_path, megabytes=64)
    assert files.digest(tmp_path / "source") == files.digest(tmp_path / "target" / "object")
    assert max(result[name]["growth_megabytes"] for name in ("upload", "download")) < 40
