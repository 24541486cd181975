"""The README names everything that a configuration may name, and its commands are ones there are."""

import json
import re
import shlex
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml

from automixalign.config.experiment import parse_experiment
from automixalign.method.losses import LossType
from automixalign.method.mixer import registered_mixers
from pipelines import cli

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
MIXERS = {name: cls for name, cls in registered_mixers().items() if cls.__module__.startswith("automixalign.")}
OPTIONS = {option for mixer in MIXERS.values() for option in mixer.schema.model_fields}
LOSSES = get_args(get_args(LossType)[0])
SHELL = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL))
COMMANDS = re.findall(r"^ama (.*?)(?:\s+#.*)?$", SHELL, re.MULTILINE)


@pytest.mark.parametrize("name", [*MIXERS, *sorted(OPTIONS), *LOSSES])
def test_every_method_option_and_loss_is_named(name: str) -> None:
    assert f"`{name}`" in README


def test_the_faults_it_counts_are_the_measured_ones() -> None:
    results = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "faults.json").read_text())
    assert f"brings about {len(results)} faults" in README
    assert all(row["as expected"] for row in results)


def test_there_are_commands() -> None:
    assert {command.split()[0] for command in COMMANDS} >= {
        "run",
        "validate",
        "compile",
        "submit",
        "sync",
        "report",
    }


def test_the_example_of_a_cluster_is_one(experiment_data: dict[str, Any]) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    changes = yaml.safe_load(example)
    experiment_data["training"] |= changes.pop("training")
    cluster = parse_experiment(experiment_data | changes, "README.md").cluster
    assert cluster.pod("train_generalist").accelerators == 8
    assert cluster.pod("train_generalist").scratch == cluster.default.scratch == "50Gi"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed as the command line parses it, with the folders it names in place."""
    monkeypatch.chdir(tmp_path)
    name, *words = shlex.split(command)
    for word in words:
        if word.startswith("runs/"):
            Path(word).mkdir(parents=True)
        elif word == "token":
            Path(word).write_text("")
    group = typer.main.get_command(cli.app)
    assert isinstance(group, typer.core.TyperGroup)
    group.commands[name].make_context(name, words)
