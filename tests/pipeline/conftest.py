"""The command line in this process, in a folder of its own."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from pipelines import cli


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


Ama = Callable[..., Ended]


@pytest.fixture
def ama(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Ama:
    """Run `ama` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)

    def call(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["ama", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return Ended(int(end.value.code or 0), *capsys.readouterr())

    return call


@pytest.fixture
def config(tmp_path: Path, experiment_data: dict[str, Any]) -> Path:
    """`experiment_data` as a file."""
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(experiment_data))
    return path


@pytest.fixture
def base_model_copy(base_model: Path, tmp_path: Path) -> Path:
    """A copy of the base model that a test may change."""
    return Path(shutil.copytree(base_model, tmp_path / "model"))
