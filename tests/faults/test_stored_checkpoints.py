"""Trainings with their checkpoints in S3 that are killed and started again on another machine.

A new machine has no file of the old one: each start is in a fresh folder.
"""

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from automixalign.config.methods import GeneralistSettings
from automixalign.steps.events import EVENTS_FILE, LOGS_VARIABLE
from automixalign.training.checkpoints.folder import CHECKPOINTS_VARIABLE, SEAL, TRAJECTORY
from automixalign.training.generalist import GeneralistTraining
from benchmarks.servers.seaweed import Seaweed, seaweed
from tests.faults import interrupted
from tests.faults.interrupted import (
    BATCHES,
    EVERYTHING,
    KILLED,
    LOG,
    STEPS,
    Fault,
    check_undisturbed,
    first_step,
)

BUCKET = "ready"
FOLDER = ".checkpoints"
MANY_STEPS = 200
PATIENCE_SECONDS = 240
WEIGHTS = "state-0.safetensors"
FOREIGN_FILE = b'{"files": {"../../x": {"size": 0, "sha256": "' + 64 * b"0" + b'"}}}'
Damage = Callable[[Any, str], object]
"""Damage a stored checkpoint, given a client and the checkpoint's prefix."""


class Store:
    """A prefix on a server, and trainings that keep their checkpoints there."""

    def __init__(self, server: Seaweed, name: str) -> None:
        self.client, self.name = server.client, name
        self.environment = {**server.environment, CHECKPOINTS_VARIABLE: f"s3://{BUCKET}/{name}/{FOLDER}"}

    def train(self, output: Path, fault: Fault | None = None, settings: str = EVERYTHING) -> int:
        """Run a training; return its exit code."""
        return interrupted.train(settings, output, fault, self.environment)

    def list_keys(self) -> list[str]:
        """The keys below the prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{self.name}/")
        keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
        return [key.removeprefix(f"{self.name}/") for key in keys]

    def holds_a_checkpoint(self) -> bool:
        """Whether a whole checkpoint is stored."""
        return any(key.endswith(SEAL) for key in self.list_keys())

    def check_finishes(self, outputs: Sequence[Path], after: int | None, *warnings: str) -> None:
        """Started in a fresh folder, it goes on after a step, warns, ends as if undisturbed, leaves nothing."""
        fresh = outputs[0].parent / "last"
        assert self.train(fresh) == 0, (fresh / LOG).read_text()
        check_undisturbed(EVERYTHING, *outputs, fresh)
        log = (fresh / LOG).read_text()
        assert not [warning for warning in warnings if warning not in log]
        assert self.list_keys() == []
        if after is not None:
            assert (first_step(fresh) if (fresh / BATCHES).exists() else STEPS) == after


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    with seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture
def store(server: Seaweed, tmp_path: Path) -> Store:
    return Store(server, tmp_path.name)


def kills(name: str, after: int | None, *faults: Fault, slow: bool = True) -> Any:
    return pytest.param(after, faults, id=name, marks=[pytest.mark.slow] if slow else [])


def random_faults(seed: int) -> list[Fault]:
    generator = random.Random(seed)
    points = {"micro-step": 12, "bytes sent": 40, "file uploaded": 14}
    return [Fault(point, generator.randint(1, calls)) for point, calls in points.items()]


@pytest.mark.parametrize(
    ("after", "faults"),
    [
        kills("before the first is stored", 0, Fault("step's end", 1)),
        kills("in mid-upload, 20 sends", None, Fault("bytes sent", 20), slow=False),
        kills("between two files of the second", 2, Fault("file uploaded", 10)),
        kills("before the seal of the second", 2, Fault("file uploaded", 14), slow=False),
        kills("after the seal of the second", 4, Fault("object written", 3), slow=False),
        kills("twice, after one checkpoint each", 4, *(2 * [Fault("object written", 2)])),
        kills("removing checkpoints", None, *(Fault("object deleted", n) for n in (12, 5, 2)), slow=False),
        *(kills(f"three times at random, seed {seed}", None, *random_faults(seed)) for seed in range(2)),
    ],
)
def test_a_killed_training_goes_on_elsewhere(
    store: Store, tmp_path: Path, after: int | None, faults: list[Fault]
) -> None:
    outputs = [tmp_path / f"machine-{number}" for number in range(len(faults))]
    codes = [store.train(output, fault) for output, fault in zip(outputs, faults, strict=True)]
    assert codes[0] == KILLED
    store.check_finishes(outputs, after)


def flip(name: str) -> Damage:
    """Change one bit and keep the object's metadata, as a failing disk does."""

    def damage(client: Any, prefix: str) -> None:
        stored = client.get_object(Bucket=BUCKET, Key=prefix + name)
        content = bytearray(stored["Body"].read())
        content[-1] ^= 1
        client.put_object(Bucket=BUCKET, Key=prefix + name, Body=bytes(content), Metadata=stored["Metadata"])

    return damage


def write(name: str, body: bytes) -> Damage:
    return lambda client, prefix: client.put_object(Bucket=BUCKET, Key=prefix + name, Body=body)


def delete(name: str) -> Damage:
    return lambda client, prefix: client.delete_object(Bucket=BUCKET, Key=prefix + name)


def damaged(name: str, damage: Damage, reason: str = "", slow: bool = True, **options: Any) -> Any:
    steps, after = options.get("steps", (4,)), options.get("after", 2)
    return pytest.param(damage, reason, steps, after, id=name, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize(
    ("damage", "reason", "steps", "after"),
    [
        damaged("a bit of the weights", flip(WEIGHTS), "is not what was stored: its SHA-256 is", slow=False),
        damaged("an object cut short", write("rng_state.pth", b"PK"), "bytes, not"),
        damaged("an object removed", delete(TRAJECTORY), "is missing"),
        damaged("no seal", delete(SEAL), "it was not finished"),
        damaged("half a seal", write(SEAL, b'{"version": 1, "fil'), "is invalid", slow=False),
        damaged("a seal of a file elsewhere", write(SEAL, FOREIGN_FILE), "is invalid"),
        damaged("all checkpoints", flip(WEIGHTS), steps=(4, 2), after=0),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(
    store: Store, tmp_path: Path, damage: Damage, reason: str, steps: Sequence[int], after: int
) -> None:
    output = tmp_path / "first"
    # The first object tries the place out; the second and the third are the seals of steps 2 and 4.
    assert store.train(output, Fault("object written", 3)) == KILLED
    (training,) = {key.split("/")[1] for key in store.list_keys()}
    for step in steps:
        damage(store.client, f"{store.name}/{FOLDER}/{training}/checkpoint-{step}/")
    store.check_finishes([output], after, *(f"checkpoint-{step} is damaged: " for step in steps), reason)


def test_a_server_that_dies_does_not_end_the_training(tmp_path: Path) -> None:
    """It is killed when the first checkpoint is stored, and does not come back."""
    (tmp_path / "seaweed").mkdir()
    output = tmp_path / "run"
    with seaweed(tmp_path / "seaweed") as server:
        fault = Fault("object written", 2, group=server.process.pid)
        assert Store(server, "run").train(output, fault) == 0, (output / LOG).read_text()
    check_undisturbed(EVERYTHING, output)
    log = (output / LOG).read_text()
    for warning in ("checkpoint-4 could not be stored: ", "resume from checkpoint-2", "could not be removed: "):
        assert warning in log


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        pytest.param(
            {"AWS_SECRET_ACCESS_KEY": "wrong"}, ("StorageError: ", "check AWS_ACCESS_KEY_ID"), id="wrong secret"
        ),
        pytest.param(
            {CHECKPOINTS_VARIABLE: f"s3://no-such-bucket/run/{FOLDER}"},
            ("StorageError: ", "create the bucket"),
            id="no bucket",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
            ("UnreachableError: ", "check that the server is up"),
            id="no server",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_store_that_cannot_be_used_is_refused_before_the_first_step(
    store: Store, tmp_path: Path, changes: dict[str, str], parts: tuple[str, ...]
) -> None:
    store.environment |= changes
    assert store.train(tmp_path / "run") == 1
    error = (tmp_path / "run" / LOG).read_text().splitlines()[-1]
    assert not [part for part in (*parts, "cannot be written") if part not in error], error
    assert not (tmp_path / "run" / BATCHES).exists()


def settings(steps: int, **training: Any) -> str:
    changed = json.loads(EVERYTHING) | {"budget": {"steps": steps}}
    changed["training"] |= training
    return json.dumps(changed)


@pytest.mark.slow
def test_two_processes_whose_launcher_is_killed(store: Store, tmp_path: Path) -> None:
    """Each of the two needs its random state again."""
    given = settings(40, processes=2, micro_batch_size=2)
    assert store.train(tmp_path / "whole", settings=given) == 0
    process = interrupted.start(given, tmp_path / "killed", None, store.environment)
    while process.is_alive() and not store.holds_a_checkpoint():
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode == KILLED
    assert store.train(tmp_path / "last", settings=given) == 0
    assert interrupted.results(tmp_path / "last")[:2] == interrupted.results(tmp_path / "whole")[:2]
    assert "resumes after step " in (tmp_path / "last" / LOG).read_text()
    assert store.list_keys() == []


def kill_and_retry(folder: Path, environment: dict[str, str], has_checkpoint: Callable[[], bool]) -> None:
    """Kill a stage once it has a checkpoint; kfp retries it, and it goes on to the same bits."""
    given = settings(MANY_STEPS, checkpoint_every=MANY_STEPS // 10)
    training = GeneralistTraining(
        settings=GeneralistSettings.model_validate_json(given),
        **interrupted.inputs(),
        output=folder / "model",
        trajectory=folder / "trajectory.jsonl",
    )
    (folder / "training.json").write_text(training.model_dump_json())
    (folder / "logs").mkdir()
    command = [sys.executable, "-m", "tests.faults.retried", folder / "training.json", folder / "kfp"]
    # One thread, for the undisturbed training has one.
    environ = {**os.environ, "OMP_NUM_THREADS": "1", LOGS_VARIABLE: str(folder / "logs"), **environment}
    deadline = time.monotonic() + PATIENCE_SECONDS
    with (
        (folder / "kfp.log").open("wb") as log,
        subprocess.Popen(command, env=environ, stdout=log, stderr=log) as run,
    ):
        try:
            while not has_checkpoint():
                assert run.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            for child in psutil.Process(run.pid).children(recursive=True):
                child.kill()  # as the system does where memory runs out
            code = run.wait(PATIENCE_SECONDS)
        finally:
            run.kill()
    assert code == 0, (folder / "kfp.log").read_text()
    events = [json.loads(line)["event"] for line in (folder / "logs" / EVENTS_FILE).read_text().splitlines()]
    assert [e for e in events if e in ("started", "failed", "finished")] == ["started", "started", "finished"]
    (step,) = re.findall(r"resumes after step (\d+)", (folder / "logs" / "train_generalist.log").read_text())
    assert int(step) >= MANY_STEPS // 10
    assert interrupted.results(folder)[:2] == interrupted.undisturbed(given)[:2]


@pytest.mark.slow
def test_a_stage_that_kfp_retries_goes_on_from_a_folder(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    sealed = f"*/checkpoint-*/{SEAL}"
    kill_and_retry(tmp_path, {CHECKPOINTS_VARIABLE: str(checkpoints)}, lambda: any(checkpoints.glob(sealed)))


@pytest.mark.slow
def test_a_stage_that_kfp_retries_goes_on_from_s3(store: Store, tmp_path: Path) -> None:
    kill_and_retry(tmp_path, store.environment, store.holds_a_checkpoint)
    assert store.list_keys() == []
