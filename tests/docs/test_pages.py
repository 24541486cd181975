"""README, docs/ and examples/ agree with the code: commands, links, keys, snippets."""

import ast
import importlib
import io
import random
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import typer
import yaml
from mergekit.merge_methods import merge_tensors
from rich.console import Console

from automixalign.config.experiment import parse_experiment
from automixalign.config.file import read_yaml
from automixalign.data.pairs import make_pair, text_of
from automixalign.data.row_formats import registry as row_formats
from automixalign.data.row_formats.row_format import DroppedRow
from automixalign.method.losses import LossType
from automixalign.method.merge_methods import registered_merges
from automixalign.method.mixers import registered_mixers
from automixalign.report import runs
from automixalign.report.compare import headline_metrics
from automixalign.scoring import caches
from automixalign.scoring.verifiers.registry import registered_verifiers
from automixalign.scoring.verifiers.verifier import Generated
from automixalign.storage import files
from automixalign.system.plugins import GROUPS, Kind
from pipelines import cli
from pipelines.local.display import show_results
from tests.report.report_run import write_run

ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md"))
}
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
COMMANDS = sorted(
    {
        command
        for page in PAGES.values()
        for shell in re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
        for command in re.findall(r"^ama (.*?)(?:\s+#.*)?$", shell, re.MULTILINE)
    }
    | {
        command
        for path in EXAMPLES
        for command in re.findall(r"^#   ama (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
)
MODULES = sorted(
    {module for page in PAGES.values() for module in re.findall(r"^python -m (benchmarks\.\w+)", page, re.M)}
)
SNIPPETS = [
    (name, snippet)
    for name, page in PAGES.items()
    for snippet in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    if name.startswith("docs/")
]
MODULES_OF_USERS = re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGES["docs/extending.md"], re.DOTALL)
MIXERS = {name: cls for name, cls in registered_mixers().items() if cls.__module__.startswith("automixalign.")}
OPTIONS = {option for mixer in MIXERS.values() for option in mixer.schema.model_fields}
LOSSES = get_args(get_args(LossType)[0])


@pytest.fixture(scope="module")
def user_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The modules of docs/extending.md can be imported."""
    folder = tmp_path_factory.mktemp("modules")
    for name, code in MODULES_OF_USERS:
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield


@pytest.mark.parametrize("name", [*MIXERS, *sorted(OPTIONS), *LOSSES])
def test_every_method_option_and_loss_is_explained(name: str) -> None:
    assert f"`{name}`" in PAGES["docs/method.md"]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!https?:|mailto:)([^)#]*)(?:#([^)]*))?\)", PAGES[page])
    for target, anchor in links:
        path = ((ROOT / page).parent / target).resolve() if target else ROOT / page
        assert path.exists(), f"{page}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


def test_every_command_of_ama_is_shown() -> None:
    group = typer.main.get_command(cli.app)
    assert isinstance(group, typer.core.TyperGroup)
    assert {command.split()[0] for command in COMMANDS} >= set(group.commands)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name, *words = shlex.split(command)
    for word in words:
        if word.startswith("runs/"):
            Path(word).mkdir(parents=True, exist_ok=True)
        elif word == "token":
            Path(word).write_text("")
        elif word.startswith("examples/"):
            assert (ROOT / word).exists()
    group = typer.main.get_command(cli.app)
    assert isinstance(group, typer.core.TyperGroup)
    group.commands[name].make_context(name, words)


@pytest.mark.parametrize("module", MODULES)
def test_benchmarks_that_are_named_exist(module: str) -> None:
    path = ROOT / module.replace(".", "/")
    assert path.with_suffix(".py").exists() or (path / "__main__.py").exists()


@pytest.mark.usefixtures("user_modules")
@pytest.mark.parametrize(("page", "snippet"), SNIPPETS, ids=[page for page, _ in SNIPPETS])
def test_configuration_snippets_are_valid(page: str, snippet: str, experiment_data: dict[str, Any]) -> None:
    changes = yaml.safe_load(snippet)
    experiment_data["training"] |= changes.pop("training", {})
    parse_experiment(experiment_data | changes, page)


@pytest.mark.usefixtures("user_modules")
def test_the_mixer_of_the_page_works() -> None:
    importlib.import_module("my_mixers")
    mixer = registered_mixers()["log-size"]({"large": 8, "small": 2}, seed=0)
    assert mixer.weights().tolist() == pytest.approx([2 / 3, 1 / 3])


def declared_on_the_page(kind: Kind) -> Any:
    """What the page declares in a group of entry points."""
    group = GROUPS[kind]
    blocks = re.findall(r"```toml\n(.*?)```", PAGES["docs/extending.md"], re.DOTALL)
    groups = [tomllib.loads(block)["project"]["entry-points"] for block in blocks]
    ((name, reference),) = next(declared[group] for declared in groups if group in declared).items()
    return metadata.EntryPoint(name, reference, group).load()


@pytest.mark.usefixtures("user_modules")
def test_the_row_format_of_the_page_works() -> None:
    duel = declared_on_the_page("row format")(min_votes=3)
    row = {"question": "2+2?", "winner": "4", "loser": "5", "votes": 3}
    pair = make_pair(duel.read(row, random.Random))
    assert text_of([*pair.prompt, *pair.chosen]) == "user: 2+2?\nassistant: 4"
    with pytest.raises(DroppedRow, match="few_votes"):
        duel.read(row | {"votes": 2}, random.Random)


@pytest.mark.parametrize("name", row_formats.registered_formats())
def test_every_row_format_and_its_options_are_explained(name: str) -> None:
    (line,) = re.findall(rf"^\| `{name}` .*$", PAGES["docs/data.md"], re.MULTILINE)
    for option in row_formats.registered_formats()[name].model_fields:
        assert f"`{option}`" in line


@pytest.mark.parametrize("name", registered_verifiers())
def test_every_verifier_and_its_options_are_explained(name: str) -> None:
    (line,) = re.findall(rf"^\| `{name}` .*$", PAGES["docs/data.md"], re.MULTILINE)
    for option in registered_verifiers()[name].model_fields:
        assert f"`{option}" in line


@pytest.mark.usefixtures("user_modules")
def test_the_merge_of_the_page_works() -> None:
    importlib.import_module("my_merges")
    merged = merge_tensors(
        torch.tensor([[0.0, 7], [5, 9], [1, 8]]), registered_merges()["quantile"].implementation
    )
    assert merged.tolist() == [1, 8]


@pytest.mark.usefixtures("user_modules", "own_plugins")
def test_the_metric_of_the_page_is_wherever_metrics_are(tmp_path: Path) -> None:
    sure = declared_on_the_page("metric")
    folder = write_run(tmp_path / "run")
    (ama,) = (entry for entry in files.read_json(folder / "leaderboard.json") if entry["model"] == "ama-r")
    scores = caches.read_scores(folder / "evaluations" / "ama-r", "alpha", "margin")
    assert ama["tasks"]["alpha"]["sure"] == (caches.column(scores, "margin") > 1).mean()
    assert ama["intervals"]["alpha"].keys() == ama["tasks"]["alpha"].keys()
    assert "worst_sure" in headline_metrics([{**ama, "validation": ama}])
    assert "worst sure pairs" in (folder / "leaderboard.md").read_text()
    assert files.read_json(folder / runs.FACTS)["metrics"]["sure"] == sure.facts()
    terminal = io.StringIO()
    show_results(Console(width=80, file=terminal), folder)
    assert "sure" in terminal.getvalue()


@pytest.mark.usefixtures("user_modules")
def test_the_verifier_of_the_page_works() -> None:
    verifier = declared_on_the_page("verifier")
    for options, output, passes in (
        ({}, "new  delhi", True),
        ({}, "Delhi New", False),
        ({"in_order": False}, "Delhi New", True),
    ):
        generated = Generated("Where?", output, "New Delhi", {})
        assert verifier(**options).passes(generated) is passes


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_valid(path: Path) -> None:
    data = read_yaml(path)
    data["tasks"] = data["tasks"] or [{"name": "helpful", "source": "helpful.jsonl"}]
    assert parse_experiment(data, path.name).name == path.stem or path.name == "cluster.yaml"


@pytest.mark.parametrize("page", ["architecture.py", "configuration.py", "gpu.py"])
def test_a_generated_page_is_up_to_date(page: str) -> None:
    command = [sys.executable, str(ROOT / "docs" / page), "--check"]
    assert subprocess.run(command, check=False).returncode == 0, "run `make pages`"


MESSAGES = re.findall(r"^\| `(.*?)` \|", PAGES["docs/troubleshooting.md"], re.MULTILINE)


@pytest.fixture(scope="module")
def literals() -> str:
    """All texts of the source but docstrings; `...` replaces the values of f-strings."""
    texts = []
    for path in (*ROOT.glob("automixalign/**/*.py"), *ROOT.glob("pipelines/**/*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        docstrings = [node.value for node in nodes if isinstance(node, ast.Expr)]
        for node in nodes:
            if isinstance(node, ast.JoinedStr):
                texts.append(
                    "...".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
                texts.append(node.value)
    return "\n".join(texts)


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_to_look_up_exist(message: str, literals: str) -> None:
    for part in message.removeprefix("warning: ").split("..."):
        assert part.strip(" :") in literals
