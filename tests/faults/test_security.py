"""Errors that another process reports, and the page that names the security tests."""

import re
from pathlib import Path

import pytest

from automixalign.system import errors


@pytest.mark.parametrize(
    "name", ["printable", "error_class", "__doc__", "Exception", "__builtins__", "", "nothing"]
)
def test_the_name_of_an_error_that_another_process_reports_is_no_other_name(name: str) -> None:
    assert errors.error_class(name) is None
    assert errors.error_class("DataError") is errors.DataError


def test_security_md_names_the_security_tests() -> None:
    text = (Path(__file__).parents[2] / "SECURITY.md").read_text()
    modules = Path(__file__).parent.glob("test_security_*.py")
    assert set(re.findall(r"security_\w+", text)) == {module.stem.removeprefix("test_") for module in modules}
