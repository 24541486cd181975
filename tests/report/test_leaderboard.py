"""The leaderboard, against numbers worked out by hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from automixalign.report import leaderboard
from automixalign.scoring.caches import SUMMARY
from automixalign.storage import files
from automixalign.system.errors import CacheError

Losses = Mapping[str, Mapping[str, float]]
ORDER = ["reference", "specialist-a", "specialist-b", "standard", "ama-r", "ties"]

LOSSES: dict[str, Losses] = {
    "reference": {"a": {"a1": 1.0, "a2": 1.0, "a3": 1.0, "a4": 1.0}, "b": {"b1": 1.0, "b2": 1.0}},
    "specialist-a": {"a": {"a1": 0.5, "a2": 0.5, "a3": 0.5, "a4": 2.0}, "b": {"b1": 3.0, "b2": 1.0}},
    "specialist-b": {"a": {"a1": 1.5, "a2": 0.5, "a3": 0.5, "a4": 2.0}, "b": {"b1": 0.25, "b2": 0.75}},
    "standard": {"a": {"a1": 0.7, "a2": 0.1, "a3": 0.5, "a4": 0.0}, "b": {"b1": 1.25, "b2": 0.95}},
    "ama-r": {"a": {"a1": 0.9, "a2": 0.9, "a3": 0.1, "a4": 2.0}, "b": {"b1": 0.45, "b2": 0.75}},
    "ties": {"a": {"a1": 0.5, "a2": 0.5, "a3": 0.5, "a4": 2.0}, "b": {"b1": 3.25, "b2": 0.75}},
}
# Worked out by hand: the mean over a task's pairs of max(L - L_specialist, 0). The fourth pair of task a, which
# its specialist does badly on, never counts in a model's favour.
EXCESS = {
    "reference": {"a": (0.5 + 0.5 + 0.5 + 0) / 4, "b": (0.75 + 0.25) / 2},
    "specialist-a": {"a": 0.0, "b": (2.75 + 0.25) / 2},
    "specialist-b": {"a": 1.0 / 4, "b": 0.0},
    "standard": {"a": (0.2 + 0 + 0 + 0) / 4, "b": (1.0 + 0.2) / 2},
    "ama-r": {"a": (0.4 + 0.4 + 0 + 0) / 4, "b": 0.2 / 2},
    "ties": {"a": 0.0, "b": 3.0 / 2},
}
MEASURED: dict[str, dict[str, dict[str, float]]] = {
    "reference": {"a": {"accuracy": 0.5, "margin": 0.0}, "b": {"accuracy": 0.5, "margin": 0.0}},
    "specialist-a": {"a": {"accuracy": 0.9, "margin": 2.0}, "b": {"accuracy": 0.1, "margin": -2.0}},
    "specialist-b": {"a": {"accuracy": 0.2, "margin": -1.0}, "b": {"accuracy": 1.0, "margin": 3.0}},
    "standard": {
        "a": {"accuracy": 0.9, "margin": 1.0, "pass_rate": 0.5},
        "b": {"accuracy": 0.4, "margin": 3.0},
    },
    "ama-r": {"a": {"accuracy": 0.7, "margin": 0.5, "pass_rate": 0.25}, "b": {"accuracy": 0.8, "margin": 1.5}},
    "ties": {"a": {"accuracy": 0.8, "margin": 0.1}, "b": {"accuracy": 0.6, "margin": -0.5}},
}


FAMILIES = {
    "reference": "reference",
    "specialist-a": "specialist",
    "specialist-b": "specialist",
    "standard": "generalist",
    "ama-r": "generalist",
    "ties": "merge",
}


def evaluation(root: Path, name: str) -> Path:
    """A folder as `evaluate` writes it, the pairs of each model in an order of their own."""
    folder = root / f"folder-of-{name}"
    tasks: dict[str, dict[str, float]] = {}
    for task, losses in LOSSES[name].items():
        ids = sorted(losses, reverse=bool(len(name) % 2))
        table = pa.table({"pair_id": ids, "loss": [losses[pair] for pair in ids]})
        files.write_table(folder / f"{task}.parquet", table)
        tasks[task] = {"loss": sum(losses.values()) / len(losses), "chosen_drift": 1.0, **MEASURED[name][task]}
    summary = {"model": name, "family": FAMILIES[name], "beta": 0.1, "tasks": tasks}
    files.write_json(folder / SUMMARY, summary)
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [evaluation(tmp_path, name) for name in sorted(ORDER)]


@pytest.fixture
def entries(folders: list[Path]) -> dict[str, Any]:
    return {entry["model"]: entry for entry in leaderboard.build(folders, ORDER)}


def test_models_stand_in_the_order_asked_for(folders: list[Path]) -> None:
    built = leaderboard.build(folders, ORDER)
    assert [entry["model"] for entry in built] == ORDER
    assert [entry["family"] for entry in built] == list(FAMILIES.values())
    assert [entry["model"] for entry in leaderboard.build(folders, ["ties", "reference"])] == [
        "ties",
        "reference",
    ]


@pytest.mark.parametrize("name", ORDER)
def test_the_excess_is_clipped_example_by_example(entries: dict[str, Any], name: str) -> None:
    found = {task: measured["excess"] for task, measured in entries[name]["tasks"].items()}
    assert found == pytest.approx(EXCESS[name])
    assert entries[name]["average"]["excess"] == pytest.approx(sum(EXCESS[name].values()) / 2)
    assert entries[name]["worst"]["excess"] == pytest.approx(max(EXCESS[name].values()))


def test_what_was_measured_is_passed_on(entries: dict[str, Any]) -> None:
    for name in ORDER:
        for task, measured in MEASURED[name].items():
            assert measured.items() <= entries[name]["tasks"][task].items()
            assert entries[name]["tasks"][task]["chosen_drift"] == 1.0
        assert "chosen_drift" not in entries[name]["average"]


def test_worst_and_average(entries: dict[str, Any]) -> None:
    assert entries["standard"]["worst"] == pytest.approx(
        {"excess": 0.6, "loss": 1.1, "accuracy": 0.4, "margin": 1.0, "pass_rate": 0.5}
    )
    assert entries["standard"]["average"] == pytest.approx(
        {"excess": 0.325, "loss": (0.325 + 1.1) / 2, "accuracy": 0.65, "margin": 2.0, "pass_rate": 0.5}
    )
    assert entries["ties"]["worst"]["margin"] == -0.5
    assert "pass_rate" not in entries["ties"]["worst"]
    assert "pass_rate" not in entries["ties"]["average"]


def test_a_model_that_was_not_evaluated(folders: list[Path]) -> None:
    with pytest.raises(CacheError, match="the model ama-s was not evaluated"):
        leaderboard.build(folders, [*ORDER, "ama-s"])


def test_a_specialist_that_was_not_evaluated(folders: list[Path]) -> None:
    some = [folder for folder in folders if folder.name != "folder-of-specialist-b"]
    with pytest.raises(CacheError, match="the specialist of task b was not evaluated"):
        leaderboard.build(some, ["standard"])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["b1"], "specialist of b, test: 1 of 2 pairs are missing in the cache, first b2"),
        (["b1", "b2", "b2"], "specialist of b, test: the cache holds a pair id twice"),
    ],
)
def test_a_specialist_that_saw_other_pairs(folders: list[Path], ids: Sequence[str], message: str) -> None:
    folder = next(folder for folder in folders if folder.name == "folder-of-specialist-b")
    files.write_table(folder / "b.parquet", pa.table({"pair_id": ids, "loss": [1.0] * len(ids)}))
    with pytest.raises(CacheError, match=message):
        leaderboard.build(folders, ["standard"])


@pytest.mark.parametrize(
    ("view", "metric", "winner"),
    [
        ("worst", "excess", "ama-r"),  # 0.2, before 0.6 and 1.5
        ("average", "excess", "ama-r"),  # 0.15, before 0.325 and 0.75
        ("worst", "loss", "ama-r"),
        ("worst", "accuracy", "ama-r"),  # 0.7, before 0.6 and 0.4; a specialist's 0.9 does not count
        ("average", "margin", "standard"),  # 2, before 1 and -0.2
        ("worst", "margin", "standard"),
        ("worst", "pass_rate", "standard"),  # 0.5, before 0.25; the merge has none
    ],
)
def test_best(folders: list[Path], view: str, metric: str, winner: str) -> None:
    assert leaderboard.best(leaderboard.build(folders, ORDER), view, metric) == winner


def test_nobody_is_best(folders: list[Path]) -> None:
    built = leaderboard.build(folders, ORDER)
    assert (
        leaderboard.best([entry for entry in built if entry["model"] == "ties"], "worst", "pass_rate") is None
    )
    assert (
        leaderboard.best([entry for entry in built if "specialist" in entry["model"]], "worst", "loss") is None
    )


def test_table(folders: list[Path]) -> None:
    header, rows = leaderboard.table(leaderboard.build(folders, ORDER), ("excess", "pass_rate"))
    assert header == [
        "model",
        "family",
        "worst excess",
        "average excess",
        "worst pass_rate",
        "average pass_rate",
    ]
    assert rows == [
        ["reference", "reference", "0.500", "0.438", "-", "-"],
        ["specialist-a", "specialist", "1.500", "0.750", "-", "-"],
        ["specialist-b", "specialist", "0.250", "0.125", "-", "-"],
        ["standard", "generalist", "0.600", "0.325", "**0.500**", "**0.500**"],
        ["ama-r", "generalist", "**0.200**", "**0.150**", "0.250", "0.250"],
        ["ties", "merge", "1.500", "0.750", "-", "-"],
    ]


def test_a_metric_that_nobody_has_gets_no_column(folders: list[Path]) -> None:
    entries = leaderboard.build(folders, ["reference", "ties"])
    header, rows = leaderboard.table(entries)
    assert [name for name in header if "pass_rate" in name] == []
    assert {len(row) for row in rows} == {len(header)}


def test_verdict(folders: list[Path]) -> None:
    built = leaderboard.build(folders, ORDER)
    assert leaderboard.verdict(built).startswith(
        "ama-r has the smallest worst-task excess, 0.200, followed by standard with 0.600 "
    )
    alone = [entry for entry in built if entry["model"] in ("reference", "specialist-a", "ties")]
    assert leaderboard.verdict(alone) == "ties has a worst-task excess of 1.500."
