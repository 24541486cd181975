"""The commands, files, counts and images on the page of the manifests are correct."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from pipelines import cli
from tests.manifests.rendered_manifests import MANIFESTS, containers, needs_kubectl, render

ROOT = MANIFESTS.parent
PAGE = (MANIFESTS / "README.md").read_text(encoding="utf-8")
LINES = "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)).splitlines()


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("ama ")])
def test_every_ama_command_is_valid(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, name, *words = shlex.split(line)
    group = typer.main.get_command(cli.app)
    assert isinstance(group, typer.core.TyperGroup)
    group.commands[name].make_context(name, words)


def test_a_dry_run_comes_before_each_first_run() -> None:
    runs = [line for line in LINES if line.startswith("ama submit")]
    assert len(runs) == 4
    assert runs[0::2] == [f"{run} --dry-run" for run in runs[1::2]]


def test_every_named_file_exists() -> None:
    words = {
        word for line in LINES for word in shlex.split(line, comments=True) if word.startswith("manifests/")
    }
    copies = {word for word in words if re.fullmatch(r"manifests/secrets/(\w+|\*)\.yaml", word)}
    assert words - copies
    for word in words - copies:
        assert (ROOT / word).exists(), word


@needs_kubectl
@pytest.mark.parametrize(("build", "count", "word"), [("local", 17, "Seventeen"), ("cluster", 16, "Sixteen")])
def test_the_page_counts_the_objects_and_names_the_images(build: str, count: int, word: str) -> None:
    assert f"{word} objects" in PAGE
    assert len(render(build)) == count
    assert all(container["image"] in PAGE for container, _ in containers(render(build)))
