"""Trainings with their checkpoints in S3 (SeaweedFS) that are killed and started again on another machine.

A new machine has nothing of the old one's: each start is into a fresh folder.
"""

import atexit
import json
import random
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

from automixalign.training.checkpoints import PLACE, SEAL, STATE, TRAJECTORY
from benchmarks.faults._interrupted import (
    BATCHES,
    EVERYTHING,
    KILLED,
    LOG,
    STEPS,
    Fault,
    first_step,
    outcome,
    same_as_undisturbed,
    scratch,
    start,
    train,
)
from benchmarks.faults.case import Case, UnexpectedError
from benchmarks.servers.seaweed import Seaweed, seaweed

_GROUP = "stored_checkpoints"
_BUCKET = "ready"
_HIDDEN = ".checkpoints"
_MANY = 40
_WEIGHTS = "adapter_model.safetensors"


@cache
def _server() -> Seaweed:
    """One for all cases; it ends with this process."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(seaweed(Path(tempfile.mkdtemp(dir=scratch()))))


def place_of(name: str, server: Seaweed | None = None) -> dict[str, str]:
    """The environment of a training that keeps its checkpoints below an output of this name."""
    return {**(server or _server()).environment, PLACE: f"s3://{_BUCKET}/{name}/{_HIDDEN}"}


def objects(name: str) -> dict[str, int]:
    """The objects below an output: name -> bytes."""
    pages = _server().client.get_paginator("list_objects_v2").paginate(Bucket=_BUCKET, Prefix=f"{name}/")
    return {
        item["Key"].removeprefix(f"{name}/"): item["Size"]
        for page in pages
        for item in page.get("Contents", [])
    }


def _end(outputs: Sequence[Path], name: str, *warned: str) -> str:
    """Start a training once more, on a fresh folder: it must end as if nobody had disturbed it."""
    fresh = outputs[0].parent / "last"
    code = train(EVERYTHING, fresh, None, place_of(name))
    log = (fresh / LOG).read_text()
    if code:
        raise UnexpectedError(f"exit code {code}: {log.splitlines()[-1]}")
    same_as_undisturbed(EVERYTHING, [*outputs, fresh])
    if missing := [text for text in warned if text not in log]:
        raise UnexpectedError(f"nothing is said of {', '.join(missing)}")
    if left := objects(name):
        raise UnexpectedError(f"in S3 stay {sorted(left)}")
    began = first_step(fresh) if (fresh / BATCHES).exists() else STEPS
    return f"on after step {began}, the same bits"


def _wants(seen: str, after: int | None) -> str:
    if after is not None and not seen.startswith(f"on after step {after},"):
        raise UnexpectedError(seen)
    return seen


def _moved(*faults: Fault, after: int | None = None) -> Callable[[Path], str]:
    """Kill a training on one machine after the other, then let it end on one more."""

    def run(folder: Path) -> str:
        outputs = [folder / f"machine-{number}" for number in range(len(faults))]
        codes = [
            train(EVERYTHING, output, fault, place_of(folder.name))
            for output, fault in zip(outputs, faults, strict=True)
        ]
        if codes[0] != KILLED:
            raise UnexpectedError(f"it was not killed: exit codes {codes}")
        return f"killed {codes.count(KILLED)} times; " + _wants(_end(outputs, folder.name), after)

    return run


def _damaged(
    damage: Callable[[Any, str], object], after: int = 2, checkpoints: Sequence[int] = (4,), reason: str = ""
) -> Callable[[Path], str]:
    """Damage what a training that was killed in its last step has stored."""

    def run(folder: Path) -> str:
        output = folder / "first"
        # The seals of steps 2 and 4 are the second and the third object; the first one tries the place out.
        if (code := train(EVERYTHING, output, Fault("object written", 3), place_of(folder.name))) != KILLED:
            raise UnexpectedError(f"exit code {code}: {(output / LOG).read_text().splitlines()[-1]}")
        (key,) = {name.split("/")[1] for name in objects(folder.name)}
        for step in checkpoints:
            damage(_server().client, f"{folder.name}/{_HIDDEN}/{key}/checkpoint-{step}/")
        told = [f"checkpoint-{step} is passed over" for step in checkpoints]
        return "a warning; " + _wants(_end([output], folder.name, *told, reason), after)

    return run


def _flipped(name: str) -> Callable[[Any, str], None]:
    """One bit changed, and the object's metadata as they were: as a failing disk would have it."""

    def damage(client: Any, prefix: str) -> None:
        was = client.get_object(Bucket=_BUCKET, Key=prefix + name)
        content = bytearray(was["Body"].read())
        content[-1] ^= 1
        client.put_object(Bucket=_BUCKET, Key=prefix + name, Body=bytes(content), Metadata=was["Metadata"])

    return damage


def _written(name: str, body: bytes) -> Callable[[Any, str], None]:
    return lambda client, prefix: client.put_object(Bucket=_BUCKET, Key=prefix + name, Body=body)


def _deleted(name: str) -> Callable[[Any, str], None]:
    return lambda client, prefix: client.delete_object(Bucket=_BUCKET, Key=prefix + name)


def _away(folder: Path) -> str:
    """The server is killed when the first checkpoint is stored, and does not come back."""
    (folder / "seaweed").mkdir()
    output = folder / "run"
    with seaweed(folder / "seaweed") as server:
        fault = Fault("object written", 2, group=server.process.pid)
        code = train(EVERYTHING, output, fault, place_of(folder.name, server))
    log = (output / LOG).read_text()
    if code:
        raise UnexpectedError(f"exit code {code}: {log.splitlines()[-1]}")
    same_as_undisturbed(EVERYTHING, [output])
    told = ("checkpoint-4 could not be stored: ", "it would go on from checkpoint-2", "could not be removed: ")
    if missing := [text for text in told if text not in log]:
        raise UnexpectedError(f"nothing is said of {', '.join(missing)}")
    return "warnings; ended well, the same bits"


def _in_two_processes(folder: Path) -> str:
    """Their launcher is killed once a checkpoint is stored; each of the two needs its random state again."""
    given = json.loads(EVERYTHING) | {"budget": {"steps": _MANY}}
    given["training"] |= {"processes": 2, "micro_batch_size": 2}
    text = json.dumps(given)
    for name in ("whole", "killed", "last"):
        process = start(text, folder / name, None, place_of(folder.name))
        while name == "killed" and process.is_alive():
            if any(stored.endswith(SEAL) for stored in objects(folder.name)):
                process.kill()
            time.sleep(0.02)
        process.join()
        if process.exitcode != (KILLED if name == "killed" else 0):
            error = (folder / name / LOG).read_text().splitlines()[-1]
            raise UnexpectedError(f"{name}: exit code {process.exitcode}: {error}")
    model, trajectory, _ = outcome(folder / "whole")
    if outcome(folder / "last")[:2] != (model, trajectory):
        raise UnexpectedError("it ended in other bits than an undisturbed one")
    went_on = re.search(r"goes on after step (\d+)", (folder / "last" / LOG).read_text())
    if not went_on or objects(folder.name):
        raise UnexpectedError(f"it began anew, or in S3 stay {sorted(objects(folder.name))}")
    return f"on after step {went_on[1]}, the same bits"


def _refused(*parts: str, **environment: str) -> Callable[[Path], str]:
    """What is wrong with the place is found before the first step."""

    def run(folder: Path) -> str:
        output = folder / "run"
        code = train(EVERYTHING, output, None, {**place_of(folder.name), **environment})
        error = (output / LOG).read_text().splitlines()[-1]
        if code != 1 or not all(part in error for part in parts):
            raise UnexpectedError(f"exit code {code}: {error}")
        if (output / BATCHES).exists():
            raise UnexpectedError("it began to train")
        return error.partition("errors.")[2]

    return run


_SAME = "the same bits, nothing stays in S3"
_PASSED_OVER = "passed over with a warning for the one before it, the same bits"
CASES = [
    Case(_GROUP, "killed before the first is stored", _SAME, _moved(Fault("step's end", 1), after=0)),
    *(
        Case(
            _GROUP,
            f"killed in mid-upload: {number} sends",
            _SAME,
            _moved(Fault("bytes sent", number)),
        )
        for number in (7, 20, 45)
    ),
    Case(_GROUP, "killed between two files of the first", _SAME, _moved(Fault("file uploaded", 5), after=0)),
    Case(_GROUP, "killed between two files of the second", _SAME, _moved(Fault("file uploaded", 18), after=2)),
    Case(_GROUP, "killed before the seal of the second", _SAME, _moved(Fault("file uploaded", 26), after=2)),
    Case(_GROUP, "killed after the seal of the second", _SAME, _moved(Fault("object written", 3), after=4)),
    Case(
        _GROUP,
        "killed three times, after one checkpoint each",
        _SAME,
        _moved(*(3 * [Fault("object written", 2)]), after=6),
    ),
    Case(
        _GROUP,
        "killed while the checkpoints are removed",
        _SAME,
        _moved(*(Fault("object deleted", number) for number in (30, 5, 2))),
    ),
    *(
        Case(
            _GROUP,
            f"killed three times at random, seed {seed}",
            _SAME,
            _moved(
                Fault("micro-step", generator.randint(1, 12)),
                Fault("bytes sent", generator.randint(1, 40)),
                Fault("file uploaded", generator.randint(1, 26)),
            ),
        )
        for seed in range(5)
        for generator in [random.Random(seed)]
    ),
    Case(
        _GROUP,
        "a bit flipped in the weights",
        _PASSED_OVER,
        _damaged(_flipped(_WEIGHTS), reason="is not what was stored: its SHA-256 is"),
    ),
    Case(_GROUP, "a bit flipped in the task weights", _PASSED_OVER, _damaged(_flipped(STATE))),
    Case(
        _GROUP,
        "an object cut short",
        _PASSED_OVER,
        _damaged(_written("optimizer.pt", b"PK"), reason="bytes, not"),
    ),
    Case(_GROUP, "an object removed", _PASSED_OVER, _damaged(_deleted(TRAJECTORY), reason="is missing")),
    Case(_GROUP, "an object added", _PASSED_OVER, _damaged(_written("x.bin", b"x"), reason="does not belong")),
    Case(_GROUP, "no seal", _PASSED_OVER, _damaged(_deleted(SEAL), reason="it was not finished")),
    Case(
        _GROUP, "half a seal", _PASSED_OVER, _damaged(_written(SEAL, b'{"version": 1, "fil'), reason="garbled")
    ),
    Case(
        _GROUP, "a seal of another shape", _PASSED_OVER, _damaged(_written(SEAL, b'{"a": 1}'), reason="garbled")
    ),
    Case(
        _GROUP,
        "a seal that names a file elsewhere",
        _PASSED_OVER,
        _damaged(
            _written(SEAL, b'{"files": {"../../x": {"size": 0, "sha256": "' + 64 * b"0" + b'"}}}'),
            reason="garbled",
        ),
    ),
    Case(
        _GROUP,
        "all checkpoints damaged",
        "passed over with a warning each, from the start to the same bits",
        _damaged(_flipped(_WEIGHTS), after=0, checkpoints=(4, 2)),
    ),
    Case(_GROUP, "S3 away from the first checkpoint on", "warnings, the training ends well", _away),
    Case(_GROUP, "two processes, their launcher killed", _SAME, _in_two_processes),
    Case(
        _GROUP,
        "a wrong secret",
        "StorageError before the first step",
        _refused(
            "StorageError: ",
            "cannot be written",
            "check AWS_ACCESS_KEY_ID",
            **{"AWS_SECRET_ACCESS_KEY": "wrong"},
        ),
    ),
    Case(
        _GROUP,
        "no such bucket",
        "StorageError before the first step",
        _refused(
            "StorageError: ",
            "cannot be written",
            "create the bucket",
            **{PLACE: f"s3://no-such-bucket/run/{_HIDDEN}"},
        ),
    ),
    Case(
        _GROUP,
        "no server",
        "UnreachableError before the first step",
        _refused(
            "UnreachableError: ",
            "cannot be written",
            "see that the server is up",
            AWS_ENDPOINT_URL="http://127.0.0.1:9",
        ),
    ),
]
