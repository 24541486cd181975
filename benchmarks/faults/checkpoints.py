"""Trainings that are killed, or whose checkpoints are damaged, in a folder of this machine."""

import random
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

from automixalign.storage import files
from automixalign.training.averaging import FILE as AVERAGE
from automixalign.training.checkpoints import SEAL, STATE, TRAJECTORY
from benchmarks.faults._interrupted import (
    BATCHES,
    EVERYTHING,
    KILLED,
    LOG,
    STEPS,
    Fault,
    first_step,
    same_as_undisturbed,
    scratch,
    train,
)
from benchmarks.faults.case import Case, UnexpectedError

_GROUP = "checkpoints"
_WEIGHTS, _OPTIMISER = "adapter_model.safetensors", "optimizer.pt"


def flip(file: Path, byte: int = -1) -> None:
    """Change one bit of a file."""
    content = bytearray(file.read_bytes())
    content[byte] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    """Leave the first half of a file."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@cache
def _halted() -> Path:
    """A training killed in its last step, with whole checkpoints of the steps 2 and 4."""
    output = scratch() / "halted"
    if train(EVERYTHING, output, Fault("step's end", STEPS - 1)) != KILLED:
        raise UnexpectedError("the training was not killed")
    return output


def _training(output: Path) -> Path:
    (folder,) = (output / "checkpoints").iterdir()
    return folder


def _finish(output: Path, after: int, *warned: str) -> str:
    """Start a training again: it goes on `after` a step, warns of some things, and ends as if undisturbed."""
    before = len(files.read_jsonl(output / BATCHES))
    if code := train(EVERYTHING, output):
        raise UnexpectedError(f"exit code {code}: {(output / LOG).read_text().splitlines()[-1]}")
    same_as_undisturbed(EVERYTHING, [output])
    log = (output / LOG).read_text()
    if missing := [text for text in warned if text not in log]:
        raise UnexpectedError(f"nothing is said of {', '.join(missing)}")
    if left := [place.name for place in (output / "checkpoints").iterdir()]:
        raise UnexpectedError(f"checkpoints stay: {left}")
    if (went_on := first_step(output, before)) != after:
        raise UnexpectedError(f"it went on after step {went_on}, not {after}")
    return f"{'a warning; ' if warned else ''}on after step {after}, the same bits"


def _damaged(damage: Callable[[Path], object], after: int, *warned: str) -> Callable[[Path], str]:
    """Damage the folder of a training that was killed after step 5."""

    def run(folder: Path) -> str:
        output = folder / "run"
        shutil.copytree(_halted(), output)
        damage(_training(output))
        return _finish(output, after, *warned)

    return run


def _last(damage: Callable[[Path], object], reason: str = "") -> Callable[[Path], str]:
    """Damage its last checkpoint."""
    return _damaged(
        lambda training: damage(training / "checkpoint-4"), 2, "checkpoint-4 is passed over", reason
    )


def _all(damage: Callable[[Path], object]) -> Callable[[Path], str]:
    """Damage all its checkpoints."""
    both = ("checkpoint-4", "checkpoint-2")
    return _damaged(
        lambda training: [damage(training / name) for name in both],
        0,
        *(f"{name} is passed over" for name in both),
    )


def _killed(*faults: Fault) -> Callable[[Path], str]:
    """Kill one training again and again, then let it end."""

    def run(folder: Path) -> str:
        output = folder / "run"
        codes = [train(EVERYTHING, output, fault) for fault in faults]
        if KILLED not in codes:
            raise UnexpectedError(f"it was not killed: exit codes {codes}")
        if code := train(EVERYTHING, output):
            raise UnexpectedError(f"exit code {code}: {(output / LOG).read_text().splitlines()[-1]}")
        same_as_undisturbed(EVERYTHING, [output])
        if left := [place.name for place in (output / "checkpoints").iterdir()]:
            raise UnexpectedError(f"checkpoints stay: {left}")
        return f"killed {codes.count(KILLED)} times, the same bits"

    return run


def _no_room(folder: Path) -> str:
    """The disk takes no more after the first checkpoint, and does again when the training is started anew."""
    output = folder / "run"
    code = train(EVERYTHING, output, Fault("sealed", 1, "full"))
    error = (output / LOG).read_text().splitlines()[-1]
    wanted = ("StorageError: ", "checkpoint-4", " cannot be written: ", "and start again")
    if code != 1 or not all(text in error for text in wanted):
        raise UnexpectedError(f"exit code {code}: {error}")
    if (kept := [path.name for path in _training(output).glob("checkpoint-*")]) != ["checkpoint-2"]:
        raise UnexpectedError(f"there are the checkpoints {kept}")
    return f"StorageError; then {_finish(output, 2)}"


def _seal(text: str) -> Callable[[Path], object]:
    return lambda checkpoint: (checkpoint / SEAL).write_text(text)


_PASSED_OVER = "passed over with a warning for the one before it, the same bits"
_SAME = "the same bits"
CASES = [
    Case(_GROUP, "weights cut short", _PASSED_OVER, _last(lambda c: cut(c / _WEIGHTS), f"{_WEIGHTS} has ")),
    Case(_GROUP, "a bit flipped in the weights", _PASSED_OVER, _last(lambda c: flip(c / _WEIGHTS))),
    Case(
        _GROUP,
        "a bit flipped in the optimiser's state",
        _PASSED_OVER,
        _last(lambda c: flip(c / _OPTIMISER, 999), f"{_OPTIMISER} is not what was sealed"),
    ),
    Case(_GROUP, "a bit flipped in the task weights", _PASSED_OVER, _last(lambda c: flip(c / STATE, 30))),
    Case(_GROUP, "a bit flipped in the average", _PASSED_OVER, _last(lambda c: flip(c / AVERAGE))),
    Case(_GROUP, "a bit flipped in its log", _PASSED_OVER, _last(lambda c: flip(c / TRAJECTORY, 20))),
    Case(_GROUP, "a file removed", _PASSED_OVER, _last(lambda c: (c / _OPTIMISER).unlink(), "is missing")),
    Case(
        _GROUP,
        "a file added",
        _PASSED_OVER,
        _last(lambda c: (c / "pytorch_model.bin").write_bytes(b"x"), "does not belong to it"),
    ),
    Case(_GROUP, "no seal", _PASSED_OVER, _last(lambda c: (c / SEAL).unlink(), "it was not finished")),
    Case(_GROUP, "half a seal", _PASSED_OVER, _last(lambda c: cut(c / SEAL), f"{SEAL} is garbled")),
    Case(_GROUP, "a seal that is no text", _PASSED_OVER, _last(lambda c: (c / SEAL).write_bytes(b"\xff\0"))),
    Case(_GROUP, "a seal of another shape", _PASSED_OVER, _last(_seal("[1, 2]"), f"{SEAL} is garbled")),
    Case(_GROUP, "a seal of nothing", _PASSED_OVER, _last(_seal('{"files": {}}'))),
    Case(
        _GROUP,
        "a seal that names a file elsewhere",
        _PASSED_OVER,
        _last(_seal('{"files": {"../../x": {"size": 0, "sha256": "' + 64 * "0" + '"}}}'), "is garbled"),
    ),
    Case(
        _GROUP,
        "an empty folder",
        _PASSED_OVER,
        _last(lambda c: (shutil.rmtree(c), c.mkdir()), "it was not finished"),
    ),
    Case(
        _GROUP,
        "all checkpoints damaged",
        "passed over with a warning each, from the start to the same bits",
        _all(lambda c: flip(c / _WEIGHTS)),
    ),
    Case(_GROUP, "the log removed", _SAME, _damaged(lambda t: (t / TRAJECTORY).unlink(), 4)),
    Case(_GROUP, "the log shorter than its checkpoint", _SAME, _damaged(lambda t: cut(t / TRAJECTORY), 4)),
    Case(_GROUP, "the log garbled", _SAME, _damaged(lambda t: flip(t / TRAJECTORY, 9), 4)),
    Case(
        _GROUP,
        "a folder that is no checkpoint",
        _SAME,
        _damaged(lambda t: (t / "checkpoint-last").mkdir(), 4),
    ),
    Case(
        _GROUP,
        "killed after every micro-step",
        _SAME,
        _killed(*(Fault("micro-step", at) for at in range(1, 7))),
    ),
    Case(_GROUP, "killed after every step", _SAME, _killed(*(Fault("step's end", at) for at in range(1, 4)))),
    *(
        Case(_GROUP, f"killed in the middle of a checkpoint: {point}", _SAME, _killed(*(2 * [Fault(point, 1)])))
        for point in ("optimiser saved", "average saved", "all but sealed")
    ),
    Case(
        _GROUP,
        "killed after each checkpoint",
        _SAME,
        _killed(Fault("sealed", 1), Fault("sealed", 1), Fault("sealed", 1)),
    ),
    Case(
        _GROUP,
        "killed while the checkpoints are removed, and after it",
        _SAME,
        _killed(Fault("vanished", 1), Fault("removed", 1)),
    ),
    Case(_GROUP, "disk full while a checkpoint is saved", "StorageError, the one before it is whole", _no_room),
    *(
        Case(
            _GROUP,
            f"killed three times at random, seed {seed}",
            _SAME,
            _killed(
                *(
                    Fault(generator.choice(("micro-step", "step's end", "sealed")), generator.randint(1, 3))
                    for _ in range(3)
                )
            ),
        )
        for seed in range(3)
        for generator in [random.Random(seed)]
    ),
]
