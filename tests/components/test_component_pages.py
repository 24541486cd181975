"""The pages of the components, and the command that writes them."""

import subprocess
import sys
from pathlib import Path

import pytest

from components import pages

ROOT = Path(__file__).parents[2]


def test_each_component_has_a_page_that_is_up_to_date() -> None:
    assert pages.stale() == [], "run: python -m components.pages"
    assert set((ROOT / "components").rglob("README.md")) == pages.pages().keys()


@pytest.mark.parametrize("name", pages.names())
def test_a_page_names_every_port_once(name: str) -> None:
    component = pages._load(name).component_spec
    text = pages.pages()[ROOT / "components" / name / "README.md"]
    for port in (*(component.inputs or {}), *(component.outputs or {})):
        assert text.count(f"\n| `{port}` | `") == 1


def test_the_check_names_stale_pages(tmp_path: Path) -> None:
    """On a copy: `--check` exits with 1 and changes nothing; without it, the command writes the page."""
    for file in [*(ROOT / "components").glob("*.*"), *(ROOT / "components").glob("*/*.*")]:
        target = tmp_path / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())

    def call(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "components.pages", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    call()
    page = tmp_path / "components" / "prepare_data" / "README.md"
    good = page.read_bytes()
    page.write_text("old")
    ended = call("--check")
    assert ended.returncode == 1
    assert ended.stdout.startswith("components/prepare_data/README.md is stale")
    assert page.read_text() == "old"
    assert call().stdout == "components/prepare_data/README.md\n"
    assert page.read_bytes() == good
    ended = call("--check")
    assert (ended.returncode, ended.stdout) == (0, "")
