"""The examples in the help of every command: all are parsed, and the quick ones run."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from pipelines import cli
from tests.pipeline.conftest import Ama
from tests.release.small_run import write_run

GROUP: Any = typer.main.get_command(cli.app)
RUN = "runs/quickstart-20250101-120000"
EXAMPLES = [
    match["words"].split(" ...")[0]
    for help_text in (GROUP.help, *(command.help for command in GROUP.commands.values()))
    for match in re.finditer(r"^ *(?:[A-Z_]+=\S+ )?ama (?P<words>.*)$", help_text, re.MULTILINE)
]
QUICK = (
    "validate --preset quickstart --set training.beta=0.2",
    "validate --config my.yaml",
    "data --config my.yaml",
    "data --config my.yaml --task helpful --rows 5",
    "compile --config my.yaml --output my-pipeline.yaml",
    "submit --preset quickstart --host http://localhost:8888 --dry-run",
    f"export {RUN} --to assistant",
    f"generate {RUN} ama-r --input prompts.jsonl --output answers.jsonl",
)


@pytest.fixture(scope="module")
def small_run(
    base_model: Path, two_tasks: Path, two_reference_logps: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("examples") / "run"
    return write_run(folder, base_model, two_tasks, two_reference_logps, methods=["uniform", "ama-r"])


@pytest.fixture
def files_of_examples(
    tmp_path: Path, small_run: Path, experiment_data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """What the examples name, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / RUN).parent.mkdir()
    (tmp_path / RUN).symlink_to(small_run)
    for name in ("runs/seed-0", "runs/seed-1", "runs/seed-2"):
        (tmp_path / name).mkdir()
    experiment_data["tasks"][0]["name"] = "helpful"
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(experiment_data))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "12+3="}\n')
    (tmp_path / "token").write_text("secret")
    yield


def test_every_command_has_an_example() -> None:
    assert {example.split()[0] for example in EXAMPLES} == set(GROUP.commands)


@pytest.mark.usefixtures("files_of_examples")
@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_parses(example: str) -> None:
    name, *words = shlex.split(example)
    GROUP.commands[name].make_context(name, words)


@pytest.mark.usefixtures("files_of_examples")
@pytest.mark.parametrize("example", QUICK)
def test_a_quick_example_runs(example: str, ama: Ama) -> None:
    assert example in EXAMPLES
    ended = ama(*shlex.split(example))
    assert ended.status == 0, ended.err
