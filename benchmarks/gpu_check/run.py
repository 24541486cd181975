"""Run each check in a process of its own, with a limit of time. A crash ends that check only."""

import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from automixalign.storage import files
from benchmarks.gpu_check.checks import CHECKS
from benchmarks.gpu_check.setting import Row, Setting

_LEAST_SECONDS = 15
"""A check with less time is not begun: it would hardly load its libraries."""
_LAST_LINES = 12
"""Of the output of a process that crashed."""
_SPARE = 0.1
"""Share of a check's time that its loops leave for its end."""


def run_all(names: Sequence[str], minutes: float) -> list[dict[str, Any]]:
    """The rows of checks that together take some minutes at most."""
    ends = time.monotonic() + 60 * minutes
    rows = []
    for number, name in enumerate(names):
        started = time.monotonic()
        left = ends - started
        if left < _LEAST_SECONDS:
            rows.append(_fields(name, Row(name, note="not run: time")))
            continue
        # Later checks get the time that a check does not use.
        share = CHECKS[name].seconds / sum(CHECKS[each].seconds for each in names[number:])
        rows += run_apart(name, left * share)
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    return rows


def run_here(names: Sequence[str], setting: Setting) -> list[dict[str, Any]]:
    """The rows of checks that run in this process."""
    return [row for name in names for row in run_check(name, setting)]


def run_apart(name: str, seconds: float) -> list[dict[str, Any]]:
    """The rows of a check that runs in a process of its own, for some seconds at most."""
    with tempfile.TemporaryDirectory() as scratch:
        output, log = Path(scratch, "rows.jsonl"), Path(scratch, "log")
        output.touch()
        options = ["--only", name, "--rows", str(output), "--minutes", str((1 - _SPARE) * seconds / 60)]
        command = [sys.executable, "-m", "benchmarks.gpu_check", *options]
        ended = []
        try:
            with log.open("w") as out:
                subprocess.run(command, timeout=seconds, stdout=out, stderr=out, check=True)
        except subprocess.TimeoutExpired:
            ended = [_fields(name, Row(name, note=f"stopped after {seconds:.0f} s"))]
        except subprocess.CalledProcessError as error:
            last = log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
            ended = [_fields(name, Row(name, error="\n".join([str(error), *last])))]
        return [*files.read_jsonl(output), *ended]


def run_check(name: str, setting: Setting) -> Iterator[dict[str, Any]]:
    """The rows of a check in this process; its error is the last one."""
    try:
        for row in CHECKS[name].measure(setting):
            yield _fields(name, row)
    except Exception as error:
        traceback.print_exc()
        yield _fields(name, Row(name, error=f"{type(error).__name__}: {error}"))


def _fields(check: str, row: Row) -> dict[str, Any]:
    return {"check": check, **row._asdict()}
