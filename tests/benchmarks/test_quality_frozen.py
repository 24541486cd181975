"""Layers that are never trained are run once a pair, and nothing comes out otherwise."""

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
from benchmarks.quality import frozen
from benchmarks.quality.arms import Arm, Merge
from benchmarks.quality.drift import drift
from benchmarks.quality.store import Store
from benchmarks.quality.world import World

AMA_R = Arm("ama-r", "ama-r")
MERGE = Merge("task_arithmetic", "task_arithmetic")


def world(folder: Path) -> World:
    """Of adapters in the second layer of two."""
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
    return World(Store(folder), parse_experiment(data, "test"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> World:
    return world(tmp_path_factory.mktemp("plain"))


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "_MEMORY", {})


def measures(made: World) -> list[Any]:
    rows = [made.specialist_row("format", (TEST,)), made.generalist_row(AMA_R, {}, (TEST,))]
    rows.append(made.merge_row(MERGE, {}, (TEST,)))
    return [
        [row[TEST][task][name] for task in made.tasks for name in ("loss", "excess", "margin", "drift")]
        for row in rows
    ]


def test_the_numbers_are_those_of_plain_layers(plain: World, tmp_path: Path) -> None:
    """Of specialists, generalists and merges, in every step of a training."""
    want = measures(plain)
    made = world(tmp_path)
    with frozen.remembered(1, tmp_path / "kept"):
        assert measures(made) == pytest.approx(np.array(want), abs=2e-5)
    logs = [files.read_jsonl(each.specialist("format") / "trajectory.jsonl") for each in (plain, made)]
    for before, after in zip(*logs, strict=True):
        assert after["loss"]["format"] == pytest.approx(before["loss"]["format"], abs=1e-5)
    assert load.read_full_model.__module__ == "automixalign.models.load"


def test_a_pair_goes_through_them_once(plain: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where another model scores it later, of another seed or in another process, and others beside it."""
    table = read_split(plain.data("format"), "format", TRAIN)
    with frozen.remembered(1, tmp_path / "kept"):
        model = load_full_model(plain.base_model)
    with frozen.remembered(1, tmp_path / "kept"):
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
    assert drift(model, other, table.slice(0, 3), "fp32") == 0
    assert len(passed) == len(table) + 3, "for both models, the chosen answers alone"
    monkeypatch.setattr(frozen, "_MEMORY", {})
    with frozen.remembered(1, tmp_path / "kept"):
        later = load_full_model(plain.base_model)
    again = later.model.layers[0].layers[0]
    assert again is not inner
    monkeypatch.setattr(again, "forward", _counted(again.forward, passed))
    third = Scorer(later, 8, "fp32").logps(table)
    assert len(passed) == len(table) + 3, "what is in the folder, another process need not compute"
    assert len(list((tmp_path / "kept").glob("*/*.safetensors"))) == len(passed)
    assert not any(path.is_dir() for path in plain.base_model.iterdir()), "it is kept nowhere else"
    assert [each.tolist() for each in third] == [each.tolist() for each in first]
    want = Scorer(load_full_model(plain.base_model), 8, "fp32").logps(table)
    for one, same in zip(first, want, strict=True):
        assert one == pytest.approx(same, abs=1e-4)


def test_other_layers_are_not_taken_for_the_same(plain: World, tmp_path: Path) -> None:
    changed = load_full_model(plain.base_model)
    with torch.no_grad():
        changed.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    changed.save_pretrained(tmp_path)
    with frozen.remembered(1, tmp_path / "kept"):
        load_full_model(plain.base_model)
        other = load_full_model(tmp_path)
    assert type(other.model.layers[0]) is type(changed.model.layers[0])
    with frozen.remembered(1, tmp_path / "kept"):
        new = load_full_model(tmp_path)
    assert torch.equal(
        new.model.layers[0].layers[0].mlp.up_proj.weight, changed.model.layers[0].mlp.up_proj.weight
    )


def _counted(call: Any, passed: list[int]) -> Any:
    def counting(hidden: torch.Tensor, **options: Any) -> Any:
        passed.append(hidden.shape[1])
        return call(hidden, **options)

    return counting
