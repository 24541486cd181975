"""The frozen layers run once for each pair, and the numbers stay the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from automixalign.config.experiment import parse_experiment
from automixalign.data.store import TEST, TRAIN, read_split
from automixalign.models import load
from automixalign.models.load import load_full_model
from automixalign.scoring.scorer import Scorer
from automixalign.storage import files
from benchmarks import tiny
from benchmarks.quality import frozen_layers
from benchmarks.quality.arms import Arm, Merge
from benchmarks.quality.seed_models import SeedModels
from benchmarks.quality.store import Store

AMA_R = Arm("ama-r", "ama-r")
MERGE = Merge("task_arithmetic", "task_arithmetic")


def seed_models(folder: Path) -> SeedModels:
    """Adapters in the second layer of two."""
    data: dict[str, Any] = {**tiny.experiment(), "split": {"validation": 0.2, "test": 0.3}}
    data["base_model"]["tiny"]["layers"] = 2
    data["training"] = {
        **data["training"],
        "learning_rate": 0.02,
        "lora": {
            "rank": 2,
            "alpha": 4,
            "target_modules": ["layers.1.mlp.up_proj", "layers.1.self_attn.q_proj"],
        },
    }
    return SeedModels(Store(folder), parse_experiment(data, "test"))


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> SeedModels:
    return seed_models(tmp_path_factory.mktemp("plain"))


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_layers, "_CACHES", {})


def measures(models: SeedModels) -> list[Any]:
    rows = [models.specialist_row("format", (TEST,)), models.generalist_row(AMA_R, {}, (TEST,))]
    rows.append(models.merge_row(MERGE, {}, (TEST,)))
    return [
        [row[TEST][task][name] for task in models.tasks for name in ("loss", "excess", "margin", "drift")]
        for row in rows
    ]


def test_the_numbers_stay_the_same(plain: SeedModels, tmp_path: Path) -> None:
    expected = measures(plain)
    cached = seed_models(tmp_path)
    with frozen_layers.cached(1, tmp_path / "outputs"):
        assert measures(cached) == pytest.approx(np.array(expected), abs=2e-5)
    logs = [files.read_jsonl(each.specialist("format") / "trajectory.jsonl") for each in (plain, cached)]
    for before, after in zip(*logs, strict=True):
        assert after["loss"]["format"] == pytest.approx(before["loss"]["format"], abs=1e-5)
    assert load.read_full_model.__module__ == "automixalign.models.load"


def test_a_pair_runs_once(plain: SeedModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = read_split(plain.data("format"), "format", TRAIN)
    with frozen_layers.cached(1, tmp_path / "outputs"):
        model = load_full_model(plain.base_model)
    with frozen_layers.cached(1, tmp_path / "outputs"):
        other = load_full_model(plain.base_model)
    assert model.model.layers[0] is other.model.layers[0]
    passed: list[int] = []
    inner = model.model.layers[0].layers[0]
    monkeypatch.setattr(inner, "forward", _counted(inner.forward, passed))
    first = Scorer(model, 8, "fp32").logps(table)
    assert len(passed) == len(table)
    second = Scorer(other, 32, "fp32").logps(table.slice(0, len(table) // 2))
    assert len(passed) == len(table)
    for one, same in zip(first, second, strict=True):
        assert same == pytest.approx(one[: len(same)], abs=1e-4)
    monkeypatch.setattr(frozen_layers, "_CACHES", {})
    with frozen_layers.cached(1, tmp_path / "outputs"):
        later = load_full_model(plain.base_model)
    again = later.model.layers[0].layers[0]
    assert again is not inner
    monkeypatch.setattr(again, "forward", _counted(again.forward, passed))
    third = Scorer(later, 8, "fp32").logps(table)
    assert len(passed) == len(table), "the folder has the outputs of other processes"
    assert len(list((tmp_path / "outputs").glob("*/*.safetensors"))) == len(passed)
    assert not any(path.is_dir() for path in plain.base_model.iterdir()), "nothing is written beside the model"
    assert [each.tolist() for each in third] == [each.tolist() for each in first]
    expected = Scorer(load_full_model(plain.base_model), 8, "fp32").logps(table)
    for one, same in zip(first, expected, strict=True):
        assert one == pytest.approx(same, abs=1e-4)


def test_other_weights_are_not_shared(plain: SeedModels, tmp_path: Path) -> None:
    changed = load_full_model(plain.base_model)
    with torch.no_grad():
        changed.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    changed.save_pretrained(tmp_path)
    with frozen_layers.cached(1, tmp_path / "outputs"):
        load_full_model(plain.base_model)
        other = load_full_model(tmp_path)
    assert type(other.model.layers[0]) is type(changed.model.layers[0])
    with frozen_layers.cached(1, tmp_path / "outputs"):
        new = load_full_model(tmp_path)
    assert torch.equal(
        new.model.layers[0].layers[0].mlp.up_proj.weight, changed.model.layers[0].mlp.up_proj.weight
    )


def _counted(call: Any, passed: list[int]) -> Any:
    def counting(hidden: torch.Tensor, **options: Any) -> Any:
        passed.append(hidden.shape[1])
        return call(hidden, **options)

    return counting
