"""Tuned merge weights: the search on the validation split, its record, and the model that it leaves."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from automixalign.config.data import SplitSpec
from automixalign.config.merges import MergeSettings
from automixalign.data.store import VALIDATION, read_split
from automixalign.merging.merge import merge_specialists
from automixalign.merging.tuning import ValidationPairs, merge_by_settings
from automixalign.models.load import load_full_model
from automixalign.steps.events import EVENTS_FILE, LOGS_VARIABLE
from automixalign.steps.step import run_step
from automixalign.storage import files
from automixalign.system.errors import DataError
from benchmarks import tiny
from tests.merging.test_merge import weights

TASKS = ["format", "refusal"]
TRIES = 6


def settings(**merge: Any) -> MergeSettings:
    tuning = {"tries": TRIES, "batch_size": 64, "precision": "fp32", "loss": {"beta": 0.5}}
    spec = {"method": "task_arithmetic", "weights": "tuned", **merge}
    return MergeSettings.model_validate({"seed": 0, "merge": spec, "tasks": TASKS, "tuning": tuning})


@pytest.fixture(scope="module")
def specialists(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for each task that differs from the base model by noise."""
    folder = tmp_path_factory.mktemp("specialists")
    for seed, task in enumerate(TASKS):
        model, generator = load_full_model(base_model), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
        model.save_pretrained(folder / task)
    return folder


@pytest.fixture
def to_tune(two_tasks: Path, two_reference_logps: Path, two_losses: list[Path]) -> list[Path]:
    return [two_tasks, two_reference_logps, two_losses[0].parent]


def test_the_best_try_becomes_the_model(
    base_model: Path, specialists: Path, to_tune: list[Path], tmp_path: Path
) -> None:
    """The numbers of the tries are those of merges with their weights, scored on the validation pairs."""
    given = settings(parameters={"weight": 0.5})
    facts = merge_by_settings(given, base_model, specialists, tmp_path / "tuned", to_tune)
    tries = facts["tuning"]["tries"]
    assert tries[0]["weights"] == dict.fromkeys(TASKS, 0.5)
    assert len(tries) == TRIES
    best = min(tries, key=lambda one: one["worst_gap"])
    assert best["worst_gap"] < tries[0]["worst_gap"]
    assert best["worst_gap"] == max(best["gaps"].values())
    assert facts["weights"] == best["weights"]
    assert [path.name for path in tmp_path.iterdir()] == ["tuned"], "no other try is left"
    merge_specialists(
        base_model,
        {t: specialists / t for t in TASKS},
        "task_arithmetic",
        {},
        tmp_path / "m",
        0,
        best["weights"],
    )
    assert all(
        torch.equal(one, weights(tmp_path / "m")[name]) for name, one in weights(tmp_path / "tuned").items()
    )
    validation, tuning = ValidationPairs.read(TASKS, *to_tune), given.tuning
    assert tuning is not None
    assert validation.gaps(load_full_model(tmp_path / "m"), tuning) == best["gaps"]
    assert facts["tuning"]["scored_pairs"] == TRIES * len(validation)


def test_the_search_leaves_out_weights_that_overflow(
    base_model: Path, to_tune: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unused token's embedding in one specialist is 0.6 of float16's largest number."""
    monkeypatch.setenv(LOGS_VARIABLE, str(tmp_path))
    for name in ("base", *TASKS):
        shutil.copytree(base_model, tmp_path / name)
        model = load_full_model(base_model)
        if name == TASKS[0]:
            model.get_input_embeddings().weight.data[-1] = 40_000
        model.half().save_pretrained(tmp_path / name)
    with run_step("merge_specialists", "tuned"):
        facts = merge_by_settings(settings(), tmp_path / "base", tmp_path, tmp_path / "tuned", to_tune)
    used = [one["weights"][TASKS[0]] for one in facts["tuning"]["tries"]]
    assert used[:2] == [1, 0.5]
    assert max(used) < 2
    warnings = [event for event in files.read_jsonl(tmp_path / EVENTS_FILE) if event["event"] == "warning"]
    assert len(used) + len(warnings) == TRIES
    assert "overflows: its weight model.embed_tokens.weight is not finite" in warnings[0]["message"]


def test_only_validation_pairs_are_scored(to_tune: list[Path]) -> None:
    for task, pairs in ValidationPairs.read(TASKS, *to_tune).tables.items():
        assert pairs.column("pair_id") == read_split(to_tune[0], task, VALIDATION).column("pair_id")


def test_a_task_without_validation_pairs_is_refused(base_model: Path, tmp_path: Path) -> None:
    split = SplitSpec(validation=0, test=0.3)
    tiny.prepare(tiny.data_settings().model_copy(update={"split": split}), base_model, tmp_path / "data")
    tiny.write_references(tmp_path / "data", base_model, tmp_path / "logps")
    tiny.write_losses(tmp_path / "data", tmp_path / "logps", tmp_path / "losses")
    with pytest.raises(DataError, match=r"task format has no validation pairs, .* raise split.validation"):
        ValidationPairs.read(TASKS, tmp_path / "data", tmp_path / "logps", tmp_path / "losses")
