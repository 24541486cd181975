"""The cases of the fault bench on security that take no time."""

import re
from pathlib import Path

import pytest

from automixalign.system import errors
from benchmarks.faults import security_checkpoints, security_data, security_models, security_output
from benchmarks.faults.case import Case


@pytest.mark.parametrize(
    "case",
    [*security_models.CHEAP, *security_checkpoints.CHEAP, *security_data.CHEAP, *security_output.CHEAP],
    ids=lambda case: f"{case.group}: {case.name}",
)
def test_case(case: Case, tmp_path: Path) -> None:
    case.run(tmp_path)


@pytest.mark.parametrize(
    "name", ["printable", "error_class", "__doc__", "Exception", "__builtins__", "", "nothing"]
)
def test_an_error_that_another_process_tells_is_one_of_ours(name: str) -> None:
    assert errors.error_class(name) is None
    assert errors.error_class("DataError") is errors.DataError


def test_every_case_of_security_md_is_a_group() -> None:
    text = (Path(__file__).parents[2] / "SECURITY.md").read_text()
    named = set(re.findall(r"security_\w+", text))
    modules = (security_checkpoints, security_data, security_models, security_output)
    assert named == {module.__name__.rpartition(".")[2] for module in modules}
