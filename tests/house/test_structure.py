"""The rules of the tree: what a folder holds, what its package says, and that import contracts are checked."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_FILES = 15
MAX_README_LINES = 150
MAX_COMPONENT_LINES = 60
PACKAGES = [
    path.parent.relative_to(ROOT)
    for top in ("automixalign", "pipelines")
    for path in sorted((ROOT / top).rglob("__init__.py"))
]


def test_the_library_has_only_folders_at_its_top() -> None:
    assert [path.name for path in (ROOT / "automixalign").glob("*.py")] == ["__init__.py"]


def test_every_folder_with_code_is_a_package() -> None:
    tops = [ROOT / top for top in ("automixalign", "pipelines")]
    assert {path.parent.relative_to(ROOT) for top in tops for path in top.rglob("*.py")} == {*PACKAGES}


@pytest.mark.parametrize("package", PACKAGES, ids=str)
def test_a_folder_has_few_files(package: Path) -> None:
    assert len(list((ROOT / package).glob("*.py"))) <= MAX_FILES


@pytest.mark.parametrize("package", PACKAGES, ids=str)
def test_a_package_states_its_task_and_its_limits(package: Path) -> None:
    """A summary line, then a sentence with `nothing` or `never`."""
    docstring = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8")))
    assert docstring
    summary, *rest = docstring.split("\n\n")
    assert summary.endswith(".")
    assert re.search(r"\b(nothing|never)\b", " ".join(rest)), docstring


@pytest.mark.parametrize(
    "component", sorted((ROOT / "components").glob("*/component.py")), ids=lambda path: path.parent.name
)
def test_a_component_is_thin(component: Path) -> None:
    assert len(component.read_text(encoding="utf-8").splitlines()) <= MAX_COMPONENT_LINES


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MAX_README_LINES


def test_make_test_checks_the_import_contracts() -> None:
    """The contracts themselves are in pyproject.toml."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (prerequisites,) = re.findall(r"^test:(.*?)(?:##.*)?$", makefile, re.MULTILINE)
    assert "lint" in prerequisites.split()
    (recipe,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert "lint-imports" in recipe
