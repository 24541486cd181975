"""What the page of the manifests tells people to type is there and is understood."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from pipelines import cli
from tests.manifests.rendered_manifests import MANIFESTS, needs_kubectl, render

ROOT = MANIFESTS.parent
PAGE = (MANIFESTS / "README.md").read_text(encoding="utf-8")
LINES = "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)).splitlines()


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("ama ")])
def test_every_ama_command_is_understood(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, name, *words = shlex.split(line)
    group = typer.main.get_command(cli.app)
    assert isinstance(group, typer.core.TyperGroup)
    group.commands[name].make_context(name, words)


def test_a_dry_run_comes_before_each_of_the_two_first_runs() -> None:
    runs = [line for line in LINES if line.startswith("ama submit")]
    assert len(runs) == 4
    assert runs[0::2] == [f"{run} --dry-run" for run in runs[1::2]]


def test_every_file_that_is_named_is_there() -> None:
    words = {
        word for line in LINES for word in shlex.split(line, comments=True) if word.startswith("manifests/")
    }
    copies = {word for word in words if re.fullmatch(r"manifests/secrets/(\w+|\*)\.yaml", word)}
    assert words - copies
    for word in words - copies:
        assert (ROOT / word).exists(), word


@needs_kubectl
def test_the_page_counts_the_objects_as_they_are() -> None:
    for build, count in (("local", "Seventeen"), ("cluster", "Sixteen")):
        numbers = {"Sixteen": 16, "Seventeen": 17}
        assert f"{count} objects" in PAGE
        assert len(render(build)) == numbers[count]


@needs_kubectl
def test_the_page_names_the_images_as_they_are() -> None:
    for build in ("local", "cluster"):
        for document in render(build):
            if document["kind"] in ("Deployment", "StatefulSet"):
                for container in document["spec"]["template"]["spec"]["containers"]:
                    assert container["image"] in PAGE
