"""The digest of a stage's code: it changes with the modules that the stage imports, and with no others."""

import ast
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from automixalign.config.experiment import parse_experiment
from automixalign.config.plan import BENCHMARKS, MODULES, Plan
from automixalign.config.settings import Settings
from automixalign.system import provenance

Data = dict[str, Any]
ROOT = Path(__file__).parents[2]
SCORED = {"scoring", "specialist_losses", "evaluation", "benchmarks"}
TRAINED = {"specialist", "specialist_losses", "generalists"}
NUMBERS = {"comparison", "registry"}
"""The report and the registry name the code that made the numbers."""
FOUND_BY_NAME = {"config/plugins.py", "system/plugins.py", "steps/jobs/job.py"}
"""Files that import modules by name: `MODULES` must name what they find in the package."""
STARTED_BY_NAME = {"steps/jobs/launch.py", "training/nodes/node.py", "training/nodes/manifest.py"}
"""Files that start modules as processes."""
CHANGE = "CHANGED = 1"


def digests(experiment_data: Data) -> dict[str, str]:
    """The digest of each stage's code, by the stage's name in the plan."""
    release = {"registry": {"name": "assistant"}, "output": "s3://bucket/prefix"}
    complete = experiment_data | release | {"benchmarks": ["toxigen"]}
    fingerprints = dict.fromkeys(("base_model", "arithmetic", "format", BENCHMARKS), "")
    plan = Plan.of(parse_experiment(complete, "test"), fingerprints)
    first = {name: value[0] if value and isinstance(value, list) else value for name, value in plan}
    return {name: settings.code for name, settings in first.items() if isinstance(settings, Settings)}


@pytest.fixture
def unchanged(experiment_data: Data) -> dict[str, str]:
    return digests(experiment_data)


@pytest.fixture
def package(unchanged: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the library, from which digests are computed."""
    copy = tmp_path / "automixalign"
    shutil.copytree(ROOT / "automixalign", copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "_PACKAGE", copy)
    monkeypatch.setattr(provenance, "_parse", cache(provenance._parse.__wrapped__))
    return copy


@pytest.mark.parametrize(
    ("file", "line", "stages"),
    [
        ("method/mixers.py", CHANGE, {"generalists", *NUMBERS}),
        ("method/baselines/static.py", CHANGE, {"generalists", *NUMBERS}),
        ("method/mixer.py", CHANGE, {*TRAINED, *NUMBERS}),
        ("method/merge_methods.py", CHANGE, {"merges", *NUMBERS}),
        ("method/losses.py", CHANGE, {*SCORED, *TRAINED, "merges", *NUMBERS}),
        ("data/tokens.py", CHANGE, {"data", *NUMBERS}),
        ("models/prepare.py", CHANGE, {"base_model", "publication", *NUMBERS}),
        ("scoring/evaluate.py", CHANGE, {"evaluation", *NUMBERS}),
        ("scoring/benchmarks/run.py", CHANGE, {"benchmarks", *NUMBERS}),
        ("scoring/verifiers/exact.py", CHANGE, {"data", "evaluation", *NUMBERS}),
        ("steps/jobs/worker.py", CHANGE, {"scoring", "evaluation", *TRAINED, *NUMBERS}),
        ("report/compare.py", CHANGE, {"comparison"}),
        ("report/assets/run.js", "// changed", NUMBERS),
        ("release/publish.py", CHANGE, {"publication"}),
        ("preflight/validate.py", CHANGE, set()),
        ("method/mixers.py", '"""A docstring."""\n# a comment\n\n\n', set()),
    ],
)
def test_a_line_changes_the_stages_that_import_it(
    file: str, line: str, stages: set[str], experiment_data: Data, unchanged: dict[str, str], package: Path
) -> None:
    assert (package / file).is_file()
    with (package / file).open("a") as out:
        out.write(f"{line}\n")
    assert {stage for stage, digest in digests(experiment_data).items() if digest != unchanged[stage]} == stages


PLUGIN = """
from automixalign.method.mixer import Mixer, register
from automixalign.scoring.verifiers.registry import register as register_verifier
from automixalign.scoring.verifiers.verifier import Verifier
from .shares import equal


@register("plugged")
class Plugged(Mixer):
    pass


@register_verifier("unused")
class Unused(Verifier):
    passes = equal
"""


def test_code_of_a_plugin_changes_the_stages_that_use_it(
    experiment_data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mixer is used, in one of two methods; its verifier is not. It imports a module of its own package."""
    folder = tmp_path / "plugged_in"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "mixers.py").write_text(PLUGIN)
    (folder / "shares.py").write_text("def equal(*_):\n    return True\n")
    monkeypatch.syspath_prepend(tmp_path)
    changes = {"plugins": ["plugged_in.mixers"], "methods": ["plugged", "uniform"]}

    def plan() -> Plan:
        monkeypatch.setattr(provenance, "_parse", cache(provenance._parse.__wrapped__))
        fingerprints = dict.fromkeys(("base_model", "arithmetic", "format"), "")
        return Plan.of(parse_experiment(experiment_data | changes, "test"), fingerprints)

    before = plan()
    (folder / "shares.py").write_text("def equal(*_):\n    return 1\n")
    after = plan()
    assert [one == other for one, other in zip(before.generalists, after.generalists, strict=True)] == [
        False,
        True,
    ]
    assert before.model_dump(exclude={"generalists"}) == after.model_dump(exclude={"generalists"})
    assert [settings.plugins for settings in after.generalists] == [["plugged_in.mixers"], []]
    assert after.data.plugins == after.evaluation.plugins == []


def test_docstrings_of_classes_functions_and_attributes_do_not_count(
    experiment_data: Data, unchanged: dict[str, str], package: Path
) -> None:
    for file in package.rglob("*.py"):
        file.write_text(file.read_text().replace('"""The ', '"""A '))
    assert digests(experiment_data) == unchanged


@pytest.mark.parametrize("stage", MODULES)
def test_the_digest_covers_what_the_component_imports(stage: str) -> None:
    tree = ast.parse((ROOT / "components" / stage / "component.py").read_text())
    imports = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    library = {name for name in imports if name.startswith("automixalign.")}
    assert library - {"automixalign.steps.step"} <= provenance.imported_modules(MODULES[stage])


def test_a_module_is_found_or_started_by_name_only_where_the_digest_knows_it() -> None:
    by_name, started = set(), set()
    for path in (ROOT / "automixalign").rglob("*.py"):
        name, text = path.relative_to(ROOT / "automixalign").as_posix(), path.read_text()
        by_name |= {name for word in ("importlib.import_module(", "iter_modules(") if word in text}
        started |= {name for word in ('"--module", ', '"-m", ') if word in text}
        assert not re.search(r"(?m)^\s*from \.", text), "the digest does not follow relative imports"
    assert (by_name, started) == (FOUND_BY_NAME, STARTED_BY_NAME)


def test_an_unknown_module_is_refused() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"automixalign\.no_such"):
        provenance.code_digest(["automixalign.no_such"])
