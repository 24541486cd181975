"""What several tests of trainings use."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from automixalign.training.nodes import train_job
from benchmarks.tiny import World
from tests.training.trainer_stub import Stub, trainer_stub


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """A cluster that this process reaches by its kubeconfig; pauses are short."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(folder / "kubeconfig"))
    monkeypatch.setattr(train_job, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(train_job, "_RETRY_SECONDS", (0.01, 0.02, 0.03))
    with trainer_stub(folder) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def inputs(
    base_model: Path, two_tasks: Path, two_reference_logps: Path, two_losses: list[Path]
) -> dict[str, Any]:
    """The inputs of a generalist of the tiny tasks; not to be changed."""
    return World(base_model, two_tasks, two_reference_logps, two_losses)._asdict()
