"""The command line, in this process or in its own, and what it must do with input that it cannot use."""

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import yaml

from automixalign.config.file import override
from benchmarks import tiny
from pipelines import cli

CONFIG = "my.yaml"
EXPERIMENT = {**tiny.experiment(), "methods": ["standard", "ama-r"], "merges": ["linear"]}
"""A valid configuration."""
ROOT = Path(__file__).parents[2]
"""The folder of `benchmarks`, whose mixers are a plugin of some experiments."""
_CAPABILITY_VERSION = 0x20080522
_DAC_OVERRIDE_AND_READ_SEARCH = 1 << 1 | 1 << 2
_LONGEST_MESSAGE = 4000


def experiment(changes: Mapping[str, Any] | None = None) -> str:
    """`EXPERIMENT` as YAML, with the changes of keys in the notation of `--set`."""
    data = yaml.safe_load(yaml.safe_dump(EXPERIMENT))
    for key, value in (changes or {}).items():
        override(data, key, value)
    return yaml.safe_dump(data, sort_keys=False)


def ama(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line in a process of its own, with these further environment variables.

    The working directory, where the MLflow store is, is the parent of an absolute `--output`.
    """
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", *map(str, arguments)]
    environ = {**os.environ, "COLUMNS": "100", "PYTHONPATH": str(ROOT), **environment}
    output = Path(command[command.index("--output") + 1]) if "--output" in command else Path()
    folder = output.parent if output.is_absolute() else Path()
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environ, cwd=folder)


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


class CommandLine:
    """`ama` in this process, in a folder that it must leave as it was.

    Args:
        folder: the working directory, with `my.yaml` where a test writes one.
        scratch: the folder for temporary files, which must stay empty.
    """

    def __init__(self, folder: Path, scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.scratch, self.capsys = folder, scratch, capsys
        self.unprivileged = False

    def configure(self, content: str | bytes) -> None:
        """Write the configuration."""
        (self.folder / CONFIG).write_bytes(content.encode() if isinstance(content, str) else content)

    def run(self, *arguments: str) -> Ended:
        """Run `ama`; an error that it does not catch is raised."""
        self.capsys.readouterr()
        status: Any = 0
        with (
            contextlib.chdir(self.folder),
            mock.patch.object(sys, "argv", ["ama", *arguments]),
            mock.patch("tempfile.tempdir", str(self.scratch)),
            mock.patch.dict(os.environ, {"COLUMNS": "200", "NO_COLOR": "1"}),
            _without_privileges() if self.unprivileged else contextlib.nullcontext(),
        ):
            try:
                cli.main()
            except SystemExit as end:
                status = end.code or 0
        return Ended(int(status), *self.capsys.readouterr())

    def refuses(self, *parts: str, arguments: tuple[str, ...] = ("-c", CONFIG), output: str = "") -> str:
        """`ama validate` and `ama run` refuse with one short message that holds all parts; no file is left.

        `output` is the run folder of a refusal that concerns only `ama run`.
        """
        before = self._files()
        validate = [] if output else [("validate",)]
        for command in (*validate, ("run", "--no-cache", "--output", output or "out")):
            ended = self.run(*command, *arguments)
            assert ended.status == 2, ended
            assert not ended.out or output
            assert ended.err.startswith("error: ")
            assert len(ended.err) <= _LONGEST_MESSAGE
            ended.err.encode()  # a terminal has to take it
            assert not [part for part in parts if part not in ended.err], ended.err
            assert self._files() == before
            assert not any(self.scratch.iterdir())
        return ended.err

    def accepts(self) -> None:
        """`ama validate` accepts the configuration."""
        ended = self.run("validate", "-c", CONFIG)
        assert ended.status == 0, ended.err
        assert ended.err.endswith("\nvalid\n")

    def _files(self) -> dict[str, int]:
        return {str(file.relative_to(self.folder)): file.lstat().st_size for file in self.folder.rglob("*")}


@contextlib.contextmanager
def _without_privileges() -> Iterator[None]:
    """Without root's right to read and write everything (capabilities(7)), where the tests have it."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, held = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, held) == 0
    fewer = type(held)(*held)
    fewer[0] &= ~_DAC_OVERRIDE_AND_READ_SEARCH
    assert libc.capset(header, fewer) == 0
    try:
        yield
    finally:
        assert libc.capset(header, held) == 0
