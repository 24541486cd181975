"""The models of a run, by name."""

from pathlib import Path
from typing import Any

import pytest

from automixalign.report.run_models import best_model, model_folder, model_names
from automixalign.storage import files
from automixalign.system.errors import ConfigError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has made two models."""
    (tmp_path / "config.yaml").write_text("")
    for name in ("reference", "ama-r"):
        files.write_text(tmp_path / "models" / name / "config.json", "{}")
        files.write_text(tmp_path / "models" / name / "model.safetensors", "")
    return tmp_path


def entry(name: str, gap: float, **more: Any) -> dict[str, Any]:
    return {"model": name, "family": "generalist", "worst": {"gap": gap}, **more}


def test_a_name_is_a_folder_and_a_wrong_name_lists_what_there_is(run: Path, tmp_path: Path) -> None:
    assert model_folder(run, "ama-r") == run / "models" / "ama-r"
    with pytest.raises(ConfigError, match=r"no model 'ama-s'; there are: ama-r, reference$"):
        model_folder(run, "ama-s")
    with pytest.raises(ConfigError, match=r"is not a run folder: there is no config\.yaml"):
        model_names(tmp_path / "models")


def test_the_best_model_is_the_registered_then_the_chosen_one(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"no leaderboard yet: name a model; there are: ama-r, reference"):
        best_model(run)
    files.write_json(run / "leaderboard.json", [entry("ama-r", 0.2), entry("ama-s", 0.1)])
    assert best_model(run) == "ama-s"
    validation = {"validation": {"worst": {"gap": 0.0}}}
    files.write_json(run / "leaderboard.json", [entry("ama-r", 0.2, **validation), entry("ama-s", 0.1)])
    assert best_model(run) == "ama-r"
    files.write_json(run / "registration.json", {"model": "linear"})
    assert best_model(run) == "linear"
