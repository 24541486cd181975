"""Checkpoints in S3, against a real server."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from automixalign.steps.events import EVENTS_FILE, LOGS_VARIABLE
from automixalign.steps.step import run_step
from automixalign.storage import files, s3
from automixalign.training import checkpoints
from automixalign.training.checkpoint_store import checkpoint_store
from automixalign.training.s3_checkpoints import S3CheckpointStore

BUCKET = "checkpoints"


@pytest.fixture
def bucket(s3: Any) -> Iterator[Any]:
    s3.create_bucket(Bucket=BUCKET)
    yield s3
    for item in s3.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        s3.delete_object(Bucket=BUCKET, Key=item["Key"])
    s3.delete_bucket(Bucket=BUCKET)


@pytest.fixture
def kept(bucket: Any, tmp_path: Path) -> S3CheckpointStore:
    """The checkpoints of a training that has just begun."""
    found = S3CheckpointStore(tmp_path / "key", f"s3://{BUCKET}/run/key")
    found.open()
    return found


def stored(bucket: Any) -> set[str]:
    return {item["Key"] for item in bucket.list_objects_v2(Bucket=BUCKET).get("Contents", [])}


def add(kept: S3CheckpointStore, step: int, wait: bool = True) -> None:
    checkpoint = kept.folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    files.write_json(checkpoint / checkpoints.STATE, {"step": step})
    (checkpoint / "weights").write_text(str(step))
    kept.add(checkpoint)
    shutil.rmtree(checkpoint)  # as transformers does, whether or not it is stored yet
    if wait and kept._upload is not None:
        kept._upload.result()


def all_of(*steps: int) -> set[str]:
    names = (checkpoints.STATE, "weights", checkpoints.SEAL)
    return {f"run/key/checkpoint-{step}/{name}" for step in steps for name in names}


def test_the_last_two_stay_and_the_last_is_taken_up_elsewhere(
    kept: S3CheckpointStore, bucket: Any, tmp_path: Path
) -> None:
    for step in (2, 4, 10):
        add(kept, step)
    assert stored(bucket) == all_of(4, 10)
    assert not list((kept.folder / ".outbox").iterdir())
    kept.close()
    elsewhere = S3CheckpointStore(tmp_path / "elsewhere", kept.uri)
    elsewhere.open()
    last = elsewhere.last_complete()
    assert last == tmp_path / "elsewhere" / "checkpoint-10"
    assert files.read_json(last / checkpoints.STATE) == {"step": 10}
    assert checkpoints.CheckpointStore(elsewhere.folder).last_complete() == last, "it is whole here, too"
    add(elsewhere, 12)
    assert stored(bucket) == all_of(10, 12)
    elsewhere.remove()
    assert stored(bucket) == set()
    assert not elsewhere.folder.exists()


class _Halt:
    """Holds every upload until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        upload = s3.Prefix.upload

        def held(*arguments: Any) -> None:
            self.begun.set()
            assert self.go.wait(30)
            upload(*arguments)

        monkeypatch.setattr(s3.Prefix, "upload", held)


def test_a_checkpoint_that_is_overtaken_is_left_out(
    kept: S3CheckpointStore, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training waits for none of them."""
    halt = _Halt(monkeypatch)
    for step in (2, 4, 6, 8):
        add(kept, step, wait=False)
        assert halt.begun.wait(30)
    assert {place.name for place in (kept.folder / ".outbox").iterdir()} == {"checkpoint-2", "checkpoint-8"}
    halt.go.set()
    kept.close()
    assert stored(bucket) == all_of(2, 8)


def test_what_is_on_its_way_when_the_training_ends_does_not_stay(
    kept: S3CheckpointStore, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(kept, 2)
    halt = _Halt(monkeypatch)
    add(kept, 4, wait=False)
    assert halt.begun.wait(30)
    add(kept, 6, wait=False)
    ending = threading.Thread(target=kept.remove)
    ending.start()
    halt.go.set()
    ending.join()
    assert stored(bucket) == set()


def test_a_training_that_fails_stores_its_last_checkpoint_first(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    halt = _Halt(monkeypatch)
    halt.go.set()
    place = f"s3://{BUCKET}/run/"
    with pytest.raises(KeyError), checkpoint_store(place, "key", tmp_path) as kept:
        assert isinstance(kept, S3CheckpointStore)
        add(kept, 2, wait=False)
        raise KeyError
    assert stored(bucket) == all_of(2)


def test_an_upload_that_fails_is_told_and_the_next_one_made(
    kept: S3CheckpointStore, bucket: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The upload runs in a thread, and its warning still belongs to the stage."""
    add(kept, 2)
    monkeypatch.setenv(LOGS_VARIABLE, str(tmp_path))
    with monkeypatch.context() as patch, run_step("train_generalist", "ama-r"):
        patch.setattr(kept._prefix, "bucket", "no-such-bucket")
        add(kept, 4)
    (warning,) = (event for event in files.read_jsonl(tmp_path / EVENTS_FILE) if event["event"] == "warning")
    assert (warning["stage"], warning["name"]) == ("train_generalist", "ama-r")
    assert warning["message"].startswith(f"{kept.uri}/checkpoint-4 could not be stored: ")
    assert (
        "The training goes on; killed before the next checkpoint is stored, it would go on from checkpoint-2"
        in warning["message"]
    )
    add(kept, 6)
    assert stored(bucket) == all_of(2, 6)


def test_what_is_no_fault_of_s3_is_raised(kept: S3CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_store", lambda *_: 1 / 0)
    add(kept, 2, wait=False)
    with pytest.raises(ZeroDivisionError):
        kept.close()


def test_other_trainings_are_left_alone(kept: S3CheckpointStore, bucket: Any) -> None:
    for name in ("key2/checkpoint-9/seal.json", "other", "key/notes.txt"):
        bucket.put_object(Bucket=BUCKET, Key=f"run/{name}", Body=b"x")
    assert kept.last_complete() is None
    kept.remove()
    assert stored(bucket) == {"run/key2/checkpoint-9/seal.json", "run/other"}
