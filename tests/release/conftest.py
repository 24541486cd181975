"""A finished run."""

from pathlib import Path

import pytest

from tests.release.small_run import write_run


@pytest.fixture(scope="session")
def finished_run(
    base_model: Path, two_tasks: Path, two_reference_logps: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a finished run with LoRA; tests must not change it."""
    return write_run(tmp_path_factory.mktemp("finished") / "run", base_model, two_tasks, two_reference_logps)
