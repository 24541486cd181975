"""The leaderboard, against numbers calculated by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pytest

from automixalign.report import leaderboard
from automixalign.report.benchmark_table import add_benchmarks, benchmark_table
from automixalign.report.compare import headline_metrics
from automixalign.scoring.benchmarks.results import RESULTS
from automixalign.scoring.caches import GENERATIONS, SUMMARY
from automixalign.storage import files
from automixalign.system.errors import CacheError


class Model(NamedTuple):
    """Losses and margins on the pairs of tasks a and b; excess on a and b; the answers of a that pass."""

    family: str
    losses: tuple[Sequence[float], Sequence[float]]
    margins: tuple[Sequence[float], Sequence[float]]
    excess: tuple[float, float]
    passed: Sequence[bool] = ()


S1, S2 = "specialist-a", "specialist-b"
# The excess is the mean over a task's pairs of max(L - L_specialist, 0), calculated by hand. On the fourth pair
# of task a the specialist has a large loss; that pair never counts in a model's favour.
MODELS = {
    "reference": Model("reference", ([1, 1, 1, 1], [1, 1]), ([0] * 4, [0] * 2), (1.5 / 4, (0.75 + 0.25) / 2)),
    S1: Model("specialist", ([0.5, 0.5, 0.5, 2], [3, 1]), ([2] * 4, [-2] * 2), (0, (2.75 + 0.25) / 2)),
    S2: Model("specialist", ([1.5, 0.5, 0.5, 2], [0.25, 0.75]), ([-1] * 4, [3] * 2), (1 / 4, 0)),
    "standard": Model(
        *("generalist", ([0.7, 0.1, 0.5, 0], [1.25, 0.95]), ([1] * 4, [7, -1]), (0.2 / 4, (1 + 0.2) / 2)),
        passed=[True, True, False, False],
    ),
    "ama-r": Model(
        *(
            "generalist",
            ([0.9, 0.9, 0.1, 2], [0.45, 0.75]),
            ([1, 1, 1, -1], [1, 2]),
            ((0.4 + 0.4) / 4, 0.2 / 2),
        ),
        passed=[True, False, False, False],
    ),
    "ties": Model("merge", ([0.5, 0.5, 0.5, 2], [3.25, 0.75]), ([0.1] * 4, [-3, 2]), (0, 3 / 2)),
}


def evaluation(folder: Path, name: str) -> Path:
    """A folder as `evaluate` writes it; the order of the pairs differs between models."""
    model, tasks = MODELS[name], {}
    for task, losses, margins in zip("ab", model.losses, model.margins, strict=True):
        ids = [f"{task}{number}" for number in range(1, len(losses) + 1)]
        table = pa.table(
            {
                "pair_id": ids,
                "prompt": [*range(len(ids))],
                "loss": pa.array(losses, pa.float64()),
                "margin": pa.array(margins, pa.float64()),
                "chosen_log_ratio": [1.0] * len(ids),
            }
        )
        order = [*range(len(ids))][:: -1 if len(name) % 2 else 1]
        files.write_table(folder / f"{task}.parquet", table.take(order))
        tasks[task] = {"loss": sum(losses) / len(losses), "margin": sum(margins) / len(margins)}
    answers = [
        {"task": "a", "pair_id": f"a{number}", "passed": passed}
        for number, passed in enumerate(model.passed, 1)
    ]
    files.write_jsonl(folder / GENERATIONS, answers)
    files.write_json(folder / SUMMARY, {"model": name, "family": model.family, "tasks": tasks})
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    return {name: evaluation(tmp_path / f"folder-of-{name}", name) for name in sorted(MODELS)}


@pytest.fixture
def board(folders: dict[str, Path]) -> list[dict[str, Any]]:
    return leaderboard.build(folders.values(), MODELS)


def select(board: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    return [entry for entry in board if entry["model"] in names]


def test_models_are_in_the_given_order(folders: dict[str, Path]) -> None:
    for order in (list(MODELS), ["ties", "reference"]):
        built = leaderboard.build(folders.values(), order)
        assert [entry["model"] for entry in built] == order
        assert [entry["family"] for entry in built] == [MODELS[name].family for name in order]


@pytest.mark.parametrize("name", MODELS)
def test_only_the_excess_is_clipped_pair_by_pair(board: list[dict[str, Any]], name: str) -> None:
    (entry,) = select(board, name)
    model = MODELS[name]
    assert [entry["tasks"][task]["excess"] for task in "ab"] == pytest.approx(model.excess)
    assert entry["average"]["excess"] == pytest.approx(sum(model.excess) / 2)
    assert entry["worst"]["excess"] == pytest.approx(max(model.excess))
    assert [entry["tasks"][task]["chosen_drift"] for task in "ab"] == [1, 1]
    assert "chosen_drift" not in entry["average"], "no direction of the drift is better"


def test_worst_and_average(board: list[dict[str, Any]]) -> None:
    standard, ties = select(board, "standard", "ties")
    assert standard["worst"] == pytest.approx(
        {"excess": 0.6, "gap": 0.6, "loss": 1.1, "accuracy": 0.5, "margin": 1.0, "pass_rate": 0.5}
    )
    assert standard["average"] == pytest.approx(
        {
            "excess": 0.325,
            "gap": (-2.2 / 4 + 0.6) / 2,
            "loss": (0.325 + 1.1) / 2,
            "accuracy": 0.75,
            "margin": 2.0,
            "pass_rate": 0.5,
        }
    )
    assert ties["worst"]["margin"] == -0.5
    assert "pass_rate" not in ties["worst"] | ties["average"]


def test_the_gap_is_signed(board: list[dict[str, Any]]) -> None:
    """The losses of ama-r on task a differ from the specialist's by 0.4, 0.4, -0.4 and 0; on b by 0.2 and 0."""
    (entry,) = select(board, "ama-r")
    assert [entry["tasks"][task]["gap"] for task in "ab"] == pytest.approx([0.1, 0.1])
    (standard,) = select(board, "standard")
    assert standard["tasks"]["a"]["gap"] == pytest.approx((0.2 - 0.4 - 2) / 4)
    assert standard["worst"]["gap"] == pytest.approx(0.6)


def swapped(name: str) -> str:
    """The model whose losses another one has on the validation split."""
    return {"standard": "ama-r", "ama-r": "standard"}.get(name, name)


def test_a_model_is_chosen_on_validation_by_its_worst_gap(folders: dict[str, Path]) -> None:
    """On the test split, ama-r is the best by every measure of the loss."""
    assert leaderboard.chosen(leaderboard.build(folders.values(), MODELS)) is None
    for name, folder in folders.items():
        evaluation(folder / "validation", swapped(name))
        summary = files.read_json(folder / "validation" / SUMMARY)
        files.write_json(folder / "validation" / SUMMARY, {**summary, "model": name})
    board = leaderboard.build(folders.values(), MODELS)
    assert leaderboard.best(board, "worst", "gap") == "ama-r"
    chosen = leaderboard.chosen(board)
    assert chosen is not None
    assert chosen["model"] == "standard"
    assert chosen["validation"]["worst"]["gap"] == pytest.approx(0.1)
    assert headline_metrics(board) == pytest.approx(
        {"worst_gap": 0.6, "worst_excess": 0.6, "worst_accuracy": 0.5, "worst_pass_rate": 0.5}
    )
    assert leaderboard.choice(board).startswith("Chosen on the validation split: standard,")


def test_without_a_validation_split_nothing_is_chosen(board: list[dict[str, Any]]) -> None:
    assert leaderboard.chosen(board) is None
    assert headline_metrics(board) == {}
    assert leaderboard.choice(board).startswith("No model is chosen: the run has no validation split")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("ama-r", "the model ama-r was not evaluated"),
        ("specialist-b", "the specialist of task b was not evaluated"),
    ],
)
def test_a_missing_evaluation_is_refused(folders: dict[str, Path], missing: str, message: str) -> None:
    del folders[missing]
    with pytest.raises(CacheError, match=message):
        leaderboard.build(folders.values(), ["standard", "ama-r"])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["b1"], "specialist of b, test: 1 of 2 pairs are missing in the cache, first b2"),
        (["b1", "b2", "b2"], "specialist of b, test: the cache holds a pair id twice"),
    ],
)
def test_a_specialist_of_other_pairs_fails(folders: dict[str, Path], ids: Sequence[str], message: str) -> None:
    table = pa.table({"pair_id": ids, "loss": [1.0] * len(ids)})
    files.write_table(folders["specialist-b"] / "b.parquet", table)
    with pytest.raises(CacheError, match=message):
        leaderboard.build(folders.values(), ["standard"])


@pytest.mark.parametrize(
    ("view", "metric", "winner"),
    [
        ("worst", "excess", "ama-r"),  # 0.2, then 0.6 and 1.5
        ("average", "excess", "ama-r"),  # 0.15, then 0.325 and 0.75
        ("worst", "loss", "ama-r"),
        ("worst", "accuracy", "ama-r"),  # 0.75, then 0.5 and 0.5; a specialist's 1 does not count
        ("average", "margin", "standard"),  # 2, then 1 and -0.2
        ("worst", "margin", "standard"),
        ("worst", "pass_rate", "standard"),  # 0.5, then 0.25; the merge has none
    ],
)
def test_best(board: list[dict[str, Any]], view: str, metric: str, winner: str) -> None:
    assert leaderboard.best(board, view, metric) == winner


def test_no_model_is_best_without_a_value_or_a_model_of_all_tasks(board: list[dict[str, Any]]) -> None:
    assert leaderboard.best(select(board, "ties"), "worst", "pass_rate") is None
    assert leaderboard.best(select(board, "specialist-a", "specialist-b"), "worst", "loss") is None


def test_table(board: list[dict[str, Any]]) -> None:
    columns = [(view, metric) for metric in ("excess", "pass_rate") for view in ("worst", "average")]
    header, rows = leaderboard.table(board, columns)
    titles = ["worst excess", "mean excess", "worst pass rate", "mean pass rate"]
    assert header == ["model", "family", *titles]
    assert rows == [
        ["reference", "reference", "0.500", "0.438", leaderboard.NOT_MEASURED, leaderboard.NOT_MEASURED],
        ["specialist-a", "specialist", "1.500", "0.750", leaderboard.NOT_MEASURED, leaderboard.NOT_MEASURED],
        ["specialist-b", "specialist", "0.250", "0.125", leaderboard.NOT_MEASURED, leaderboard.NOT_MEASURED],
        ["standard", "generalist", "0.600", "0.325", "**0.500**", "**0.500**"],
        ["ama-r", "generalist", "**0.200**", "**0.150**", "0.250", "0.250"],
        ["ties", "merge", "1.500", "0.750", leaderboard.NOT_MEASURED, leaderboard.NOT_MEASURED],
    ]


def test_a_metric_without_values_gets_no_column(board: list[dict[str, Any]]) -> None:
    header, rows = leaderboard.table(select(board, "reference", "ties"))
    assert "pass rate" not in " ".join(header)
    assert {len(row) for row in rows} == {len(header)}


def test_intervals_and_differences_to_the_baseline(board: list[dict[str, Any]]) -> None:
    """Without `uniform`, the baseline is the first generalist, here `standard`."""
    entries = {entry["model"]: entry for entry in board}
    assert [name for name, entry in entries.items() if "difference" in entry] == ["ama-r", "ties"]
    low, high = entries["ama-r"]["intervals"]["b"]["gap"]
    assert (low, high) == pytest.approx((0, 0.2)), "of two prompts, both limits are the gap of one of them"
    assert entries[S1]["intervals"]["a"]["gap"] == (0, 0)
    assert entries["ama-r"]["intervals"]["a"]["pass_rate"][0] == 0
    difference = entries["ama-r"]["difference"]["b"]["gap"]
    assert difference == pytest.approx({"mean": -0.5, "low": -0.8, "high": -0.2}), "paired, prompt by prompt"
    assert "accuracy" not in entries["reference"]["intervals"]["a"]


def test_the_worst_tasks_of_two_models_are_compared(board: list[dict[str, Any]]) -> None:
    """By the gap, the worst task of ties and of standard is b, with [3, 0] and [1, 0.2]: they are paired.

    By the accuracy, the worst task of ama-r is a, with [1, 1, 1, 0], and that of standard is b, with [1, 0].
    """
    ama, ties = select(board, "ama-r", "ties")
    assert ties["worst_difference"]["gap"] == pytest.approx({"mean": 0.9, "low": 0 - 0.2, "high": 3 - 1})
    assert ama["worst_difference"]["accuracy"] == pytest.approx({"mean": 0.25, "low": 0.5 - 1, "high": 1 - 0})


def test_details(board: list[dict[str, Any]]) -> None:
    header, rows = leaderboard.details(select(board, "standard", "ama-r"))
    assert header[:3] == ["task", "model", "gap"]
    assert header[-1] == "gap, less that of standard"
    assert [row[:2] for row in rows] == [["a", "standard"], ["a", "ama-r"], ["b", "standard"], ["b", "ama-r"]]
    assert (rows[3][2], rows[3][-1]) == ("0.100 [0.000, 0.200]", "-0.500 [-0.800, -0.200]")
    assert rows[2][-1] == leaderboard.NOT_MEASURED


def test_verdict(board: list[dict[str, Any]]) -> None:
    first = "On the test split, ama-r has the smallest worst-task gap, 0.100. The next is standard, with 0.600."
    assert leaderboard.verdict(board).startswith(
        f"{first} The worst-task gap of ama-r is 0.500 below that of standard"
    )
    alone = select(board, "reference", "specialist-a", "ties")
    assert leaderboard.verdict(alone) == "On the test split, ties has a worst-task gap of 1.500."


@pytest.mark.parametrize(
    ("high", "sentence"),
    [
        (-0.1, "-0.900 to -0.100 over test prompts: resolved."),
        (0.1, "not resolved, because its interval contains 0.000"),
        (-0.0001, "not resolved, because its interval contains 0.000"),
    ],
)
def test_a_difference_is_resolved_if_its_interval_excludes_0(
    board: list[dict[str, Any]], high: float, sentence: str
) -> None:
    (ama,) = select(board, "ama-r")
    ama["worst_difference"]["gap"] |= {"low": -0.9, "high": high}
    assert sentence in leaderboard.verdict(board)


@pytest.mark.parametrize(
    ("selected", "sentence"),
    [
        ("ama-r", "The chosen model is first here, too. The next is standard, with 0.600."),
        (
            "ties",
            "The chosen model, ties, has 1.500. The worst-task gap of ties is 0.900 above that of standard",
        ),
        (
            "standard",
            "The chosen model, standard, has 0.600. The worst-task gap of ama-r is 0.500 below that of",
        ),
    ],
)
def test_the_choice_comes_first_and_the_ranking_names_the_chosen_model(
    board: list[dict[str, Any]], selected: str, sentence: str
) -> None:
    for entry in board:
        entry["validation"] = {"worst": {"gap": 0.1 if entry["model"] == selected else 0.2}}
    choice, verdict = leaderboard.conclusions(board)
    assert choice.startswith(f"Chosen on the validation split: {selected},")
    assert sentence in verdict


def test_benchmarks_have_a_table_of_the_models_that_solved_them(tmp_path: Path) -> None:
    metrics = {"acc": 0.75, "acc_stderr": 0.125, "acc_norm": 0.5}
    solved = {"toxigen": {"metrics": metrics}, "gsm8k": {"metrics": {"exact_match,strict-match": 0.25}}}
    files.write_json(tmp_path / RESULTS, {"model": "uniform", "benchmarks": solved})
    entries = [{"model": name, "family": "generalist"} for name in ("standard", "uniform")]
    add_benchmarks(entries, [tmp_path])
    assert "benchmarks" not in entries[0]
    assert entries[1]["benchmarks"] == {name: each["metrics"] for name, each in solved.items()}
    header = ["model", "family", "toxigen acc", "gsm8k exact_match,strict-match"]
    assert benchmark_table(entries) == (header, [["uniform", "generalist", "0.750 ± 0.125", "0.250"]])
    assert benchmark_table(entries[:1])[1] == []
