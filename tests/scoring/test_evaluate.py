"""An evaluation: its splits."""

import math
from pathlib import Path

import pytest

from automixalign.scoring import caches
from automixalign.scoring.caches import SUMMARY
from automixalign.scoring.evaluate import GENERATIONS
from automixalign.scoring.metrics.registry import over_tasks
from automixalign.storage import files
from automixalign.system.errors import CacheError, ModelError
from benchmarks import tiny
from tests.faults.common import evaluate_tiny


def test_the_validation_split_is_scored_beside_the_test_split(tmp_path: Path) -> None:
    """The choice among models needs it; generated answers are for the results alone."""
    evaluate_tiny(tiny.world().base_model, "m", "generalist", tmp_path / "m")
    for split, folder in (("test", tmp_path / "m"), ("validation", tmp_path / "m" / "validation")):
        summary = files.read_json(folder / SUMMARY)
        assert summary["tasks"].keys() == set(tiny.TASKS)
        for task, measured in summary["tasks"].items():
            cache = caches.read_cache(tiny.world().reference_logps / task, split)
            scores = caches.read_scores(folder, task, caches.LOSS)
            assert scores.column("pair_id") == cache.column("pair_id")
            assert measured["loss"] == pytest.approx(caches.column(scores, caches.LOSS).mean())
    assert (tmp_path / "m" / GENERATIONS).exists()
    assert not (tmp_path / "m" / "validation" / GENERATIONS).exists()


def test_the_reference_has_no_accuracy(tmp_path: Path) -> None:
    """Its margins are 0 by definition, so it prefers neither answer; its loss, ln 2, is meaningful."""
    evaluate_tiny(tiny.world().base_model, "reference", "reference", tmp_path / "reference")
    tasks = files.read_json(tmp_path / "reference" / SUMMARY)["tasks"]
    for measured in tasks.values():
        assert "accuracy" not in measured
        assert (measured["loss"], measured["margin"]) == (pytest.approx(math.log(2)), 0)
    worst, average = over_tasks(tasks)
    assert "accuracy" not in worst.keys() | average.keys()


def test_the_reference_needs_no_model_if_nothing_is_answered(tmp_path: Path) -> None:
    """The cache has its scores."""
    evaluate_tiny(None, "reference", "reference", tmp_path / "without")
    evaluate_tiny(tiny.world().base_model, "reference", "reference", tmp_path / "with")
    assert files.digest(tmp_path / "without") == files.digest(tmp_path / "with")
    with pytest.raises(ModelError, match="a model is needed to score"):
        evaluate_tiny(None, "m", "generalist", tmp_path / "m")


def test_a_model_is_not_scored_in_another_precision_than_the_reference(tmp_path: Path) -> None:
    """On a cluster, `auto` means bf16 on one machine and fp32 on another. The reference alone only joins."""
    base = tiny.world().base_model
    with pytest.raises(CacheError, match=r"in fp32, .* model in bf16; set evaluation\.precision"):
        evaluate_tiny(base, "m", "generalist", tmp_path / "m", precision="bf16")
    evaluate_tiny(base, "reference", "reference", tmp_path / "reference", precision="bf16")
