"""What the groups of bad input share: give `ama` something in this process, and see that it refuses it."""

import contextlib
import ctypes
import io
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import yaml

from automixalign.config.file import override
from benchmarks.faults.case import UnexpectedError
from pipelines import cli

CONFIG = "my.yaml"
_CAPABILITIES = 0x20080522
"""The version of capset(2)'s structures."""
_OVERRIDES = 1 << 1 | 1 << 2
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""
_LONGEST_MESSAGE = 4000

EXPERIMENT: dict[str, Any] = {
    "name": "bad-input",
    "base_model": {"source": "tiny", "tiny": {"hidden_size": 16, "layers": 1, "heads": 2, "steps": 2}},
    "tasks": [
        {"name": "arithmetic", "source": "synthetic:arithmetic", "limit": 20},
        {"name": "format", "source": "synthetic:format", "limit": 20},
    ],
    "max_length": 64,
    "training": {"batch_size": 4, "learning_rate": 0.001},
    "budget": {"specialist": {"steps": 2}, "generalist": {"steps": 2}},
    "methods": ["standard", "ama-r"],
    "merges": ["linear"],
}
"""A configuration that is accepted as it is."""


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


def experiment(changes: Mapping[str, Any] | None = None) -> str:
    """`EXPERIMENT` as YAML, with keys in the notation of `--set` changed."""
    data = yaml.safe_load(yaml.safe_dump(EXPERIMENT))
    for key, value in (changes or {}).items():
        override(data, key, value)
    return yaml.safe_dump(data, sort_keys=False)


def ama_here(folder: Path, *arguments: str, anybody: bool = False) -> Ended:
    """Run the command line in this process, in `folder`; or as a user who owns nothing."""
    out, err = io.StringIO(), io.StringIO()
    status: Any = 0
    with (
        contextlib.chdir(folder),
        mock.patch.object(sys, "argv", ["ama", *arguments]),
        mock.patch.dict(os.environ, {"COLUMNS": "200", "NO_COLOR": "1"}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        _as_anybody() if anybody else contextlib.nullcontext(),
    ):
        try:
            cli.main()
        except SystemExit as end:
            status = end.code or 0
    return Ended(int(status), out.getvalue(), err.getvalue())


def refused(
    folder: Path, *says: str, arguments: tuple[str, ...] = ("-c", CONFIG), anybody: bool = False
) -> str:
    """See that `ama validate` and `ama run` refuse what lies in `folder`, and leave it as it was.

    Args:
        folder: where it lies; the working directory.
        says: what the message must name.
        arguments: of both commands.
        anybody: run them without root's right to read and write everything.

    Returns:
        The message's first line that holds the first of `says`.

    Raises:
        UnexpectedError: it was accepted, or refused in another way.
    """
    before = _listing(folder)
    scratch = Path(tempfile.mkdtemp(prefix="ama-scratch-"))
    try:
        with mock.patch.object(tempfile, "tempdir", str(scratch)):
            for command in (("validate",), ("run", "--output", "out")):
                ended = _without_traceback(folder, *command, *arguments, anybody=anybody)
                _check(ended, says)
                if _listing(folder) != before or any(scratch.iterdir()):
                    raise UnexpectedError(f"ama {command[0]} left files behind")
    finally:
        scratch.rmdir()
    lines = ended.err.removeprefix("error: ").splitlines()
    line = next(line for line in lines if says[0] in line)
    return line if len(line) <= 160 else f"{line[:157]}..."


def accepted(folder: Path, *, arguments: tuple[str, ...] = ("-c", CONFIG)) -> None:
    """See that `ama validate` accepts what lies in `folder`.

    Raises:
        UnexpectedError: it does not.
    """
    ended = _without_traceback(folder, "validate", *arguments)
    if ended.status or ended.err:
        raise UnexpectedError(f"status {ended.status}: {ended.err.strip()}")


def _without_traceback(folder: Path, *command: str, anybody: bool = False) -> Ended:
    try:
        return ama_here(folder, *command, anybody=anybody)
    except Exception as error:  # whatever reaches the user as a traceback
        raise UnexpectedError(f"ama {command[0]}: a traceback that ends in {error!r:.200}") from error


def _check(ended: Ended, says: tuple[str, ...]) -> None:
    if ended.status != 2:
        raise UnexpectedError(f"status {ended.status}: {ended.err.strip() or 'accepted'}")
    if ended.out or not ended.err.startswith("error: ") or len(ended.err) > _LONGEST_MESSAGE:
        raise UnexpectedError(f"not one short message: {ended.out[:200]} {ended.err[:200]}")
    ended.err.encode()  # a terminal has to take it
    if missing := [text for text in says if text not in ended.err]:
        raise UnexpectedError(f"the message does not name {missing[0]}: {ended.err.strip()[:300]}")


def _listing(folder: Path) -> dict[str, int]:
    return {str(file.relative_to(folder)): file.lstat().st_size for file in folder.rglob("*")}


@contextlib.contextmanager
def _as_anybody() -> Iterator[None]:
    """Without root's right to read and write everything (capabilities(7)), where the tests have it."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, held = (ctypes.c_uint32 * 2)(_CAPABILITIES, 0), (ctypes.c_uint32 * 6)()
    _call(libc.capget, header, held)
    fewer = type(held)(*held)
    fewer[0] &= ~_OVERRIDES
    _call(libc.capset, header, fewer)
    try:
        yield
    finally:
        _call(libc.capset, header, held)


def _call(function: Any, *arguments: Any) -> None:
    if function(*arguments):
        raise OSError(ctypes.get_errno(), function.__name__)
