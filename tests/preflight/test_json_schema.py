"""The JSON Schema of a configuration, with a validator that editors also have."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from automixalign.config.file import read_yaml
from automixalign.preflight.json_schema import HEADER, SCHEMA_FILE, schema_text

ROOT = Path(__file__).parents[2]
FILES = sorted((*ROOT.glob("examples/*.yaml"), *ROOT.glob("pipelines/presets/*.yaml")))
SCHEMA = json.loads(schema_text())


def faults(data: Any) -> list[str]:
    Draft202012Validator.check_schema(SCHEMA)
    return [fault.message for fault in Draft202012Validator(SCHEMA).iter_errors(data)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_presets_and_examples_fit_the_schema_that_their_first_line_names(path: Path) -> None:
    header = path.read_text(encoding="utf-8").splitlines()[0]
    assert header.startswith(HEADER)
    assert (path.parent / header.removeprefix(HEADER)).resolve() == ROOT / "docs" / SCHEMA_FILE
    assert faults(read_yaml(path)) == []


@pytest.mark.parametrize(
    "change",
    [
        {"sed": 1},
        {"seed": -1},
        {"training": {"batch_size": 16, "learning_rate": 1e-3, "lera": {}}},
        {"tasks": [{"name": "a", "source": "a.jsonl", "sources": ["a.jsonl"]}]},
        {"tasks": [{"name": "a"}]},
        {"split": {"test": 1}},
        {"long_answers": "crop"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_wrong_key_or_value_does_not_fit(change: dict[str, Any], experiment_data: dict[str, Any]) -> None:
    assert faults(experiment_data) == []
    assert faults(experiment_data | change)


def test_an_editor_can_explain_every_key() -> None:
    keys = [
        (name, key, value)
        for name, each in SCHEMA["$defs"].items()
        for key, value in each["properties"].items()
    ]
    keys += [("", key, value) for key, value in SCHEMA["properties"].items()]
    unexplained = [
        (name, key)
        for name, key, value in keys
        if "description" not in value and "$ref" not in json.dumps(value)
    ]
    assert unexplained == []
    assert "eta" in SCHEMA["$defs"]["MethodSpec"]["properties"]
