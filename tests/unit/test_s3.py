"""S3, against a real server."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from automixalign import s3 as library
from automixalign.config import BaseModelSpec, TaskSpec
from automixalign.data.read import fingerprint, read_rows
from automixalign.errors import DataError

BUCKET = "preferences"
URI = f"s3://{BUCKET}"


@pytest.fixture(scope="module")
def client(s3: Any) -> Any:
    """The client, once there is the bucket `BUCKET`."""
    s3.create_bucket(Bucket=BUCKET)
    return s3


@pytest.fixture
def bucket(client: Any) -> Iterator[Any]:
    """The client, and a bucket that is empty again after each test."""
    yield client
    for item in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=item["Key"])


@pytest.fixture
def new_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have boto3 look at the environment again, as a new process would."""
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)


def put(client: Any, **objects: str) -> None:
    for key, text in objects.items():
        client.put_object(Bucket=BUCKET, Key=key, Body=text.encode())


def rows(*prompts: str) -> str:
    return "".join(json.dumps({"prompt": p, "chosen": "a", "rejected": "b"}) + "\n" for p in prompts)


def prompts(source: str) -> dict[str, str]:
    found = read_rows(TaskSpec(name="task", source=source), seed=0)
    return {row.where: row.data["prompt"] for row in found}


def test_a_task_from_one_object(bucket: Any) -> None:
    put(bucket, **{"deep/file.jsonl": rows("one", "two")})
    assert prompts(f"{URI}/deep/file.jsonl") == {
        f"{URI}/deep/file.jsonl:1": "one",
        f"{URI}/deep/file.jsonl:2": "two",
    }


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_task_from_a_prefix(bucket: Any, slash: str) -> None:
    objects = {
        "data/a.jsonl": rows("one"),
        "data/sub/b.jsonl": rows("two"),
        "data/notes.txt": "no rows",
        "data2/c.jsonl": rows("three"),
    }
    put(bucket, **objects)
    assert prompts(f"{URI}/data{slash}") == {
        f"{URI}/data/a.jsonl:1": "one",
        f"{URI}/data/sub/b.jsonl:1": "two",
    }


def test_a_malformed_row_is_named_by_its_uri(bucket: Any) -> None:
    put(bucket, **{"data/a.jsonl": rows("one") + "{"})
    with pytest.raises(DataError, match=rf"{URI}/data/a\.jsonl:2: not a JSON document"):
        prompts(f"{URI}/data")


def test_a_prefix_ends_at_a_slash(bucket: Any) -> None:
    keys = ["data", "data/a", "data/b/c", "data.jsonl", "data2/d", "dat", "other"]
    put(bucket, **dict.fromkeys(keys, "x"))
    assert list(library.list_objects(f"{URI}/data")) == ["data", "data/a", "data/b/c"]
    assert list(library.list_objects(f"{URI}/data/")) == ["data/a", "data/b/c"]
    assert sorted(library.list_objects(URI)) == sorted(keys)


def test_keys_with_characters_that_mean_something_in_urls(bucket: Any) -> None:
    put(bucket, **{"odd/what?#1 %20ä.jsonl": rows("odd"), "odd/what": "wrong"})
    assert list(prompts(f"{URI}/odd/what?#1 %20ä.jsonl").values()) == ["odd"]


def test_download_keeps_the_tree(bucket: Any, tmp_path: Path) -> None:
    put(bucket, **{"m/config.json": "1", "m/sub/weights": "2"})
    bucket.put_object(Bucket=BUCKET, Key="m/empty/", Body=b"")
    folder = library.download(f"{URI}/m", tmp_path)
    assert {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()} == {
        "config.json": "1",
        "sub/weights": "2",
    }


def test_the_fingerprint_follows_the_content(bucket: Any) -> None:
    from automixalign import base_model

    task, model = TaskSpec(name="task", source=f"{URI}/data"), BaseModelSpec(source=f"{URI}/data")
    seen, models = [], []
    for change in ({"data/a": "one"}, {"data/a": "two"}, {"data/b": "one"}, {"data/a": "one"}):
        put(bucket, **change)
        seen.append(fingerprint(task))
        models.append(base_model.fingerprint(model))
        assert fingerprint(task) == seen[-1]
    assert len(set(seen)) == len(set(models)) == 4
    put(bucket, **{"data2/x": "neighbour"})
    assert fingerprint(task) == seen[-1]


@pytest.mark.parametrize("call", ["read", "fingerprint"])
@pytest.mark.parametrize(
    "source", [f"{URI}/missing.jsonl", "s3://no-such-bucket/file.jsonl", "s3://Bad_Bucket!/x"]
)
def test_what_is_not_there_is_named(bucket: Any, call: str, source: str) -> None:
    put(bucket, **{"missing.jsonl.bak": "x"})
    with pytest.raises(DataError) as refusal:
        prompts(source) if call == "read" else fingerprint(TaskSpec(name="task", source=source))
    assert source in str(refusal.value)


@pytest.mark.usefixtures("new_session")
def test_a_wrong_secret_is_refused(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put(bucket, **{"file.jsonl": rows("one")})
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(DataError, match=rf"{URI}/file\.jsonl cannot be listed: .*SignatureDoesNotMatch"):
        prompts(f"{URI}/file.jsonl")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("AWS_ENDPOINT_URL", "no url"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
        ("AWS_PROFILE", "nobody"),
    ],
)
@pytest.mark.usefixtures("new_session")
def test_a_wrong_setup_is_refused(bucket: Any, monkeypatch: pytest.MonkeyPatch, key: str, value: str) -> None:
    monkeypatch.setenv(key, value)
    with pytest.raises(DataError, match=rf"{URI}/file\.jsonl cannot be listed"):
        prompts(f"{URI}/file.jsonl")


@pytest.mark.parametrize("uri", ["s3://", "s3:///key", "s3:bucket/key", "http://bucket/key"])
def test_malformed_uris(uri: str) -> None:
    with pytest.raises(DataError, match="not of the form s3://bucket/key"):
        library.split_uri(uri)
