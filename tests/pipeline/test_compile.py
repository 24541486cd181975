"""The compiled pipeline: deterministic, as committed, free of logic and secrets."""

import ast
from pathlib import Path

import pytest
import yaml
from kfp import compiler

from pipelines.automixalign import build

ROOT = Path(__file__).parents[2]
COMPONENTS = sorted((ROOT / "components").glob("*/component.py"))


@pytest.mark.parametrize("again", range(2))
def test_the_committed_pipeline_is_what_the_code_compiles_to(again: int, tmp_path: Path) -> None:
    compiler.Compiler().compile(build(), str(tmp_path / "pipeline.yaml"))
    committed = (ROOT / "pipelines" / "automixalign.yaml").read_text()
    assert (tmp_path / "pipeline.yaml").read_text() == committed, "run `make compile` and commit the change"


def test_without_merges_only_the_merges_are_gone(tmp_path: Path) -> None:
    compiler.Compiler().compile(build(with_merges=False), str(tmp_path / "pipeline.yaml"))
    spec = next(yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text()))
    with_merges = next(yaml.safe_load_all((ROOT / "pipelines" / "automixalign.yaml").read_text()))
    assert set(with_merges["root"]["dag"]["tasks"]) - set(spec["root"]["dag"]["tasks"]) == {"merges"}
    assert spec["root"]["inputDefinitions"] == with_merges["root"]["inputDefinitions"]


@pytest.mark.parametrize(("option", "step"), [("with_registry", "register"), ("with_output", "publish")])
def test_further_steps_are_there_only_where_they_are_asked_for(option: str, step: str, tmp_path: Path) -> None:
    specs = []
    for wanted in (False, True):
        place = tmp_path / f"{wanted}.yaml"
        compiler.Compiler().compile(build(**{option: wanted}), str(place))
        specs.append(next(yaml.safe_load_all(place.read_text())))
    tasks = [set(spec["root"]["dag"]["tasks"]) for spec in specs]
    assert tasks[1] - tasks[0] == {step}
    assert f"comp-{step}" not in specs[0]["components"]


def _is_text(node: ast.AST) -> bool:
    """A docstring: text that stands alone."""
    return isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str)


@pytest.mark.parametrize("path", COMPONENTS, ids=lambda path: path.parent.name)
def test_a_component_is_thin_and_in_the_dag(path: Path, tmp_path: Path) -> None:
    source = path.read_text()
    docstring = max((node.value.value for node in ast.walk(ast.parse(source)) if _is_text(node)), key=len)
    assert len(source.splitlines()) - len(docstring.splitlines()) <= 50
    compiler.Compiler().compile(build(with_registry=True, with_output=True), str(tmp_path / "pipeline.yaml"))
    spec = next(yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text()))
    assert f"exec-{path.parent.name.replace('_', '-')}" in spec["deploymentSpec"]["executors"]
