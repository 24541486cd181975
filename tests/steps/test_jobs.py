"""How a job comes to its processes; tests/scoring and tests/training share real work among them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from automixalign.steps.jobs.job import Job
from automixalign.steps.jobs.launch import run_job
from automixalign.system.errors import ConfigError


class Idle(Job):
    def run(self, scratch: Path) -> dict[str, Any]:
        return {}


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine of the tests has no GPU, so their number is pretended."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"3 processes need a GPU each, and torch sees 2: lower 'training"):
        run_job(Idle(), 3)
