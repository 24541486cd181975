"""Checkpoints in S3, against a real server."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from automixalign.steps.events import EVENTS_FILE, LOGS_VARIABLE
from automixalign.steps.step import run_step
from automixalign.storage import files, s3
from automixalign.training.checkpoints import folder as checkpoints
from automixalign.training.checkpoints.s3 import S3CheckpointStore
from automixalign.training.checkpoints.store import checkpoint_store, remove_checkpoints

BUCKET = "checkpoints"


@pytest.fixture
def bucket(s3: Any) -> Iterator[Any]:
    s3.create_bucket(Bucket=BUCKET)
    yield s3
    for item in s3.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        s3.delete_object(Bucket=BUCKET, Key=item["Key"])
    s3.delete_bucket(Bucket=BUCKET)


@pytest.fixture
def store(bucket: Any, tmp_path: Path) -> S3CheckpointStore:
    """The checkpoints of a training that has just begun."""
    opened = S3CheckpointStore(tmp_path / "key", f"s3://{BUCKET}/run/key")
    opened.open()
    return opened


def objects(bucket: Any) -> set[str]:
    return {item["Key"] for item in bucket.list_objects_v2(Bucket=BUCKET).get("Contents", [])}


def add(store: S3CheckpointStore, step: int, wait: bool = True) -> None:
    checkpoint = store.folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    files.write_json(checkpoint / checkpoints.STATE, {"step": step})
    store.add(checkpoint, lambda: files.write_text(checkpoint / "weights", str(step)))
    store.wait()
    if wait and store._upload is not None:
        store._upload.result()


def keys_of(*steps: int) -> set[str]:
    names = (checkpoints.STATE, "weights", checkpoints.SEAL)
    return {f"run/key/checkpoint-{step}/{name}" for step in steps for name in names}


def test_two_checkpoints_stay_and_another_machine_resumes_from_the_last(
    store: S3CheckpointStore, bucket: Any, tmp_path: Path
) -> None:
    for step in (2, 4, 10):
        add(store, step)
    assert objects(bucket) == keys_of(4, 10)
    assert [path.name for path in store.folder.iterdir()] == ["checkpoint-10"]
    store.close()
    elsewhere = S3CheckpointStore(tmp_path / "elsewhere", store.uri)
    elsewhere.open()
    last = elsewhere.last_complete()
    assert last == tmp_path / "elsewhere" / "checkpoint-10"
    assert files.read_json(last / checkpoints.STATE) == {"step": 10}
    assert checkpoints.CheckpointStore(elsewhere.folder).last_complete() == last, "it is complete locally, too"
    add(elsewhere, 12)
    assert objects(bucket) == keys_of(10, 12)
    elsewhere.remove()
    assert objects(bucket) == set()


class HeldUploads:
    """Every upload waits for `go`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        upload = s3.Prefix.upload

        def held(*arguments: Any) -> None:
            self.begun.set()
            assert self.go.wait(30)
            upload(*arguments)

        monkeypatch.setattr(s3.Prefix, "upload", held)


def test_a_replaced_checkpoint_is_never_uploaded(
    store: S3CheckpointStore, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training waits for no upload."""
    uploads = HeldUploads(monkeypatch)
    for step in (2, 4, 6, 8):
        add(store, step, wait=False)
        assert uploads.begun.wait(30)
    assert {path.name for path in store.folder.iterdir()} == {"checkpoint-2", "checkpoint-8"}
    uploads.go.set()
    store.close()
    assert objects(bucket) == keys_of(2, 8)


def test_an_upload_at_the_end_of_the_training_leaves_nothing(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process removes the checkpoints, when the training has stored the last one."""
    uploads = HeldUploads(monkeypatch)
    with checkpoint_store(f"s3://{BUCKET}/run/", "key", tmp_path) as store:
        assert isinstance(store, S3CheckpointStore)
        for step in (2, 4):
            add(store, step, wait=False)
            assert uploads.begun.wait(30)
        uploads.go.set()
    assert objects(bucket) == keys_of(2, 4)
    remove_checkpoints(store.uri)
    assert objects(bucket) == set()


def test_a_training_that_fails_stores_its_last_checkpoint_first(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    HeldUploads(monkeypatch).go.set()
    with pytest.raises(KeyError), checkpoint_store(f"s3://{BUCKET}/run/", "key", tmp_path) as store:
        assert isinstance(store, S3CheckpointStore)
        add(store, 2, wait=False)
        raise KeyError
    assert objects(bucket) == keys_of(2)


def test_a_failed_upload_causes_a_warning_and_the_next_one_succeeds(
    store: S3CheckpointStore, bucket: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The upload runs in a thread, and its warning still belongs to the stage."""
    add(store, 2)
    monkeypatch.setenv(LOGS_VARIABLE, str(tmp_path))
    with monkeypatch.context() as patch, run_step("train_generalist", "ama-r"):
        patch.setattr(store._prefix, "bucket", "no-such-bucket")
        add(store, 4)
    (warning,) = (event for event in files.read_jsonl(tmp_path / EVENTS_FILE) if event["event"] == "warning")
    assert (warning["stage"], warning["name"]) == ("train_generalist", "ama-r")
    assert warning["message"].startswith(f"{store.uri}/checkpoint-4 could not be stored: ")
    assert warning["message"].endswith(
        "The training continues; if it is killed before the next checkpoint is stored, it will resume from "
        "checkpoint-2"
    )
    add(store, 6)
    assert objects(bucket) == keys_of(2, 6)


def test_an_error_not_from_s3_is_raised(store: S3CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_store", lambda *_: 1 / 0)
    add(store, 2, wait=False)
    with pytest.raises(ZeroDivisionError):
        store.close()


def test_objects_of_other_trainings_stay(store: S3CheckpointStore, bucket: Any) -> None:
    for name in ("key2/checkpoint-9/seal.json", "other", "key/notes.txt"):
        bucket.put_object(Bucket=BUCKET, Key=f"run/{name}", Body=b"x")
    assert store.last_complete() is None
    store.remove()
    assert objects(bucket) == {"run/key2/checkpoint-9/seal.json", "run/other"}
