"""Fixtures of the fault tests, and `--faults-table`: every case and its outcome as Markdown."""

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from hypothesis import HealthCheck, settings
from mlflow import MlflowClient

from benchmarks.servers.mlflow_store import sqlite_store
from tests.faults.command_line import CommandLine

settings.register_profile(
    "short",
    max_examples=120,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile("long", settings.get_profile("short"), max_examples=10_000, derandomize=False)


@pytest.fixture
def cli(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> CommandLine:
    """`ama` in this process, in `tmp_path`."""
    return CommandLine(tmp_path, tmp_path_factory.mktemp("scratch"), capsys)


@pytest.fixture
def model(base_model: Path, tmp_path: Path) -> Path:
    """The small model in a folder of the test's own, to be damaged."""
    return Path(shutil.copytree(base_model, tmp_path / "model"))


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """A path that malicious code of the test would make: it must not exist at the end."""
    yield tmp_path / "marker"
    assert not (tmp_path / "marker").exists(), "the code ran"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets environment variables, or removes those with None; boto3 reads them again."""

    def change(**variables: str | None) -> None:
        for name, value in variables.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)

    return change


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], str]:
    """Registers a model's folder in an MLflow registry of the test's own; returns its source."""
    uri = sqlite_store(tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)

    def register(model: Path) -> str:
        client = MlflowClient(uri)
        client.create_registered_model("base")
        client.create_model_version("base", model.as_uri())
        return "models:/base/1"

    return register


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--faults-table`."""
    parser.addoption("--faults-table", action="store_true", help="print every case and its outcome as Markdown")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table."""
    if not config.getoption("--faults-table", False):
        return
    terminalreporter.write_line("| test | outcome | seconds |\n| --- | --- | --- |")
    kinds = ("passed", "failed", "skipped", "error")
    reports = itertools.chain(*map(terminalreporter.getreports, kinds))
    for report in sorted(reports, key=lambda report: report.nodeid):
        if report.when == "call" or report.outcome != "passed":
            case = report.nodeid.rpartition("/")[2].replace("|", "\\|")
            terminalreporter.write_line(f"| `{case}` | {report.outcome} | {report.duration:.1f} |")
