"""Write the table of checkpoints into docs/gpu.md: bytes, and how long a training stands still.

python docs/checkpoints.py [--check]    (part of `make pages`)
"""

import re
import sys
from pathlib import Path
from typing import NamedTuple

from gpu import SHAPES

from automixalign.training.checkpoints.size import STATE_BYTES, WEIGHT_BYTES, checkpoint_bytes, stall_seconds

PAGE = Path(__file__).with_name("gpu.md")
_TABLE = re.compile(r"(?<=<!-- table: docs/checkpoints.py -->\n).*?(?=<!-- end of the table -->)", re.DOTALL)

COPY_RATE = 4e9
"""Bytes per second from a GPU to memory that is not pinned, in each process."""
DISK_RATE = 1e9
"""Bytes per second that all processes together write."""
DIGEST_RATE = 2e9
"""Bytes per second of SHA-256 on one core."""
INTERVAL_SECONDS = 15 * 60


class _Training(NamedTuple):
    name: str
    trained: int
    processes: int = 1
    weights_before: int = 1
    """How often checkpoints held the weights before each process wrote its own part."""


_ZEPHYR, _QWEN3 = SHAPES["alignment-handbook/zephyr-7b-sft-full"], SHAPES["Qwen/Qwen3-1.7B"]
TRAININGS = (
    _Training("7 B in full, FSDP on 8 GPUs (`zephyr-7b`)", _ZEPHYR.parameters, 8, weights_before=2),
    _Training("7 B, LoRA of rank 128, one GPU", _ZEPHYR.adapter(128)),
    _Training("1.7 B in full, one GPU", _QWEN3.parameters),
    _Training("1.7 B, LoRA of rank 32, one GPU", _QWEN3.adapter(32)),
)


def table() -> str:
    """The table as Markdown."""
    head = (
        "training",
        "trained parameters",
        "checkpoint",
        "a process writes",
        "the training stands still",
        "of 15 minutes",
        "complete after",
        "before: checkpoint",
        "stood still",
        "of 15 minutes",
    )
    rows = [head, ("---",) * len(head), *map(_row, TRAININGS)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(training: _Training) -> tuple[str, ...]:
    trained, size = training.trained, checkpoint_bytes(training.trained)
    stall = stall_seconds(trained, training.processes, COPY_RATE)
    size_before = trained * (training.weights_before * WEIGHT_BYTES + STATE_BYTES)
    return (
        training.name,
        f"{trained / 1e6:,.0f} M",
        _gigabytes(size),
        _gigabytes(size / training.processes),
        f"{stall:.1f} s",
        f"{stall / INTERVAL_SECONDS:.2%}",
        f"{stall + _write_and_digest(size):.0f} s",
        _gigabytes(size_before),
        f"{_write_and_digest(size_before):.0f} s",
        f"{_write_and_digest(size_before) / INTERVAL_SECONDS:.1%}",
    )


def _write_and_digest(size: float) -> float:
    return size / DISK_RATE + size / DIGEST_RATE


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def page() -> str:
    """docs/gpu.md with the table of today."""
    text, count = _TABLE.subn(lambda _: table(), PAGE.read_text(encoding="utf-8"))
    if count != 1:
        sys.exit(f"{PAGE} has {count} places for the table of checkpoints, not one")
    return text


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(page() != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(page(), encoding="utf-8")
