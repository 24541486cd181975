"""Bad input: every case of the fault bench, refused before the run, or counted and dropped."""

import pytest

from benchmarks.faults import configs, models, rows
from benchmarks.faults.__main__ import outcome
from benchmarks.faults.case import Case


@pytest.mark.parametrize(
    "case",
    [*rows.CASES, *configs.CASES, *models.CASES],
    ids=lambda case: f"{case.group}: {case.name}",
)
def test_bad_input(case: Case) -> None:
    seen = outcome(case)
    assert seen["as expected"], seen["seen"]
