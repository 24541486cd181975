"""The cases of the fault bench on security that take no time."""

from pathlib import Path

import pytest

from benchmarks.faults import security_checkpoints, security_data, security_models, security_output
from benchmarks.faults.case import Case


@pytest.mark.parametrize(
    "case",
    [*security_models.CHEAP, *security_checkpoints.CHEAP, *security_data.CHEAP, *security_output.CHEAP],
    ids=lambda case: f"{case.group}: {case.name}",
)
def test_case(case: Case, tmp_path: Path) -> None:
    case.run(tmp_path)
