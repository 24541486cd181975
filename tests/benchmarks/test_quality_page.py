"""The page of the quality benchmark shows the numbers that hand calculation gives for made-up results."""

import itertools
import json
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from benchmarks.quality import page, plots, tables
from benchmarks.quality.results import (
    WORST_EXCESS,
    WORST_GAP,
    CapacityMap,
    Cell,
    Comparison,
    Measure,
    Selection,
    SetupResults,
    at_total_compute,
    compared,
    with_plain_ama_r,
    with_rivals,
    with_uniform,
)

SEEDS = range(5)
ARMS = {
    "reference": 0.6,
    "specialist-a": 0.5,
    "specialist-b": 0.5,
    "ama-r-odd": 0.3,
    "standard": 0.4,
    "uniform": 0.2,
    "uniform-clip": 0.19,
    "ama-r": 0.1,
    "ama-s": 0.2,
    "uniform-total": 0.15,
    "ama-r-total": 0.05,
    "ties": 0.5,
    "linear-tuned": 0.25,
    "ties-tuned": 0.35,
}
BELOW = (0.1, 0.12, 0.08, 0.11, 0.09)
"""By how much ama-r's worst gap is below uniform's .2, seed by seed; the mean is .1."""
LATE = tuple(enumerate({"a": 0.25, "b": 0.75}.items(), 1))
AMA_AND_UNIFORM = (
    *(("ama-r", "uniform"), ("ama-s", "uniform"), ("ama-r", "uniform-total"), ("ama-s", "uniform-total")),
    ("ama-r-total", "uniform-total"),
)


def family(arm: str) -> str:
    if arm.startswith(("ties", "linear")):
        return "merge"
    return "reference" if arm == "reference" else "specialist" if "specialist" in arm else "generalist"


def row(seed: int, arm: str, pass_rate: bool) -> dict[str, Any]:
    """Task b is the worst one: its gap is that of ARMS, task a's is half of it; the excess is .01 larger."""
    worst = 0.2 - BELOW[seed] if arm == "ama-r" else ARMS[arm]
    tasks = {
        task: {"excess": gap + 0.01, "loss": 0.1 + gap, "accuracy": 1 - gap, "margin": 2.0, "drift": gap}
        for task, gap in (("a", worst / 2), ("b", worst))
    }
    if pass_rate:
        tasks["b"]["pass_rate"] = 0.5 + (0.25 if arm == "ama-r" and seed < 3 else 0)
    if arm.startswith("specialist-"):
        tasks[arm[-1]] = {"excess": 0.0, "loss": 0.1, "accuracy": 1.0, "margin": 3.0, "drift": 0.1}
    trained = family(arm) in ("specialist", "generalist")
    cost = {"seconds": 30.0 + seed, "tokens": 12_345, "steps": 100} if trained else {}
    log = {task: {"weight": part, "pairs": 16 * part, "excess": 0.1 * number} for number, (task, part) in LATE}
    return {
        "seed": seed,
        "arm": arm,
        "family": family(arm),
        "tasks": tasks,
        **{"seconds": None, "tokens": None, "steps": None, **cost},
        "late": log if family(arm) == "generalist" else {},
    }


def write_setup(results: Path, name: str, *, seeds: int = 5, pass_rate: bool = True, without: str = "") -> Path:
    rows = [row(seed, arm, pass_rate) for seed in range(seeds) for arm in ARMS if arm != without]
    tried = [{"options": {"eta": eta}, "worst_excess": 0.2 - eta} for eta in (0.01, 0.1, 0.03)]
    content = {
        "setup": name,
        "command": f"python -m benchmarks.quality {name}",
        "experiment": {},
        "seeds": list(range(seeds)),
        "tuning_seeds": [100, 101],
        "tuned": {"ama-r": {"chosen": {"eta": 0.1}, "tried": tried}},
        "rows": rows,
    }
    results.mkdir(parents=True, exist_ok=True)
    file = results / f"{name}.json"
    file.write_text(json.dumps(content))
    file.with_suffix(".pilot.md").write_text("What the pilot showed.\n")
    return file


def write_map(results: Path, pass_rate: bool = True) -> Path:
    """AMA-R's worst excess is .1 at rank 1 and .25 elsewhere, uniform's .2; no cell has 8 tasks and rank 16."""
    rows = []
    for seed, rank, steps, tasks in itertools.product(range(3), (16, "full", 1), (400, 100), (8, 3)):
        if (tasks, rank) == (8, 16):
            continue
        for method, worst in (("uniform", 0.2), ("ama-r", 0.1 if rank == 1 else 0.25)):
            metrics = {"worst_excess": worst, "mean_excess": worst / 2}
            if pass_rate:
                metrics["worst_pass_rate"] = 1 - worst
            cell = {"seed": seed, "rank": rank, "steps": steps, "tasks": tasks, "method": method}
            rows.append(cell | metrics)
    results.mkdir(parents=True, exist_ok=True)
    file = results / "map.json"
    content = {"command": "python -m benchmarks.quality map", "seeds": [0, 1, 2], "rows": rows}
    file.write_text(json.dumps(content))
    return file


def line(text: str, begins: str, number: int = 0) -> list[str]:
    """The cells of a table row with this first cell."""
    rows = [row for row in text.splitlines() if row.startswith(f"| {begins} |")]
    return [cell.strip() for cell in rows[number].strip("|").split("|")]


def below(text: str, heading: str) -> str:
    return text[text.index(heading) :]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_setup(tmp_path / "quality", "made-up")


@pytest.fixture
def setup(file: Path) -> SetupResults:
    return SetupResults.read(file)


def change(file: Path, edit: Callable[[list[dict[str, Any]]], object]) -> SetupResults:
    """Edit the rows of a results file, and read it."""
    content = json.loads(file.read_text())
    edit(content["rows"])
    file.write_text(json.dumps(content))
    return SetupResults.read(file)


def compare_worst(setup: SetupResults, pairs: Selection) -> list[Comparison]:
    return compared(setup, pairs(setup), WORST_GAP)


def test_worst_and_mean_over_tasks(setup: SetupResults) -> None:
    assert setup.values("standard", WORST_GAP) == pytest.approx(dict.fromkeys(SEEDS, 0.4))
    assert setup.values("standard", WORST_EXCESS) == pytest.approx(dict.fromkeys(SEEDS, 0.41))
    assert setup.values("standard", Measure("accuracy", "worst")) == dict.fromkeys(SEEDS, 0.6)
    assert setup.values("standard", Measure("gap")) == pytest.approx(dict.fromkeys(SEEDS, 0.3))
    assert setup.values("standard", Measure("pass_rate")) == dict.fromkeys(SEEDS, 0.5)  # only task b has it
    assert setup.values("standard", Measure("pass_rate", "task", "a")) == {}


def test_arms_come_in_the_order_of_the_page(setup: SetupResults) -> None:
    assert setup.arms("generalist", "merge") == [
        *("standard", "uniform", "uniform-clip", "ama-r", "ama-s", "ama-r-odd", "uniform-total"),
        *("ama-r-total", "ties", "linear-tuned", "ties-tuned"),
    ]
    assert setup.best_tuned_merge() == "linear-tuned"


def test_comparison_with_uniform(setup: SetupResults) -> None:
    """Nine of ten arms differ the same way on each of 5 seeds: p = .0625, times ten; ama-s is equal."""
    by_arm = {each.arm: each for each in compare_worst(setup, with_uniform)}
    assert len(by_arm) == 10
    ama = by_arm["ama-r"].paired
    assert ama.difference.mean == pytest.approx(-0.1)
    assert (ama.wins, ama.ties, ama.p, by_arm["ama-r"].corrected) == (5, 0, 0.0625, 10 * 0.0625)
    assert (by_arm["ama-s"].paired.ties, by_arm["ama-s"].corrected) == (5, 1.0)
    assert by_arm["standard"].paired.difference.mean == pytest.approx(0.2)


def test_comparison_with_rivals_omits_absent_arms(setup: SetupResults) -> None:
    rows = compare_worst(setup, with_rivals)
    rivals = ["standard", "uniform-clip", "uniform-total", "linear-tuned"]
    assert [each[:2] for each in rows] == [(arm, rival) for arm in ("ama-r", "ama-s") for rival in rivals]
    assert rows[2].paired.difference.mean == pytest.approx(0.1 - 0.15)
    assert {each.corrected for each in rows} == {8 * 0.0625}


def test_comparison_at_total_compute(setup: SetupResults) -> None:
    (only,) = compare_worst(setup, at_total_compute)  # the setup has no standard-total
    assert (only.arm, only.baseline, only.corrected) == ("ama-r-total", "uniform-total", 0.0625)
    assert only.paired.difference.mean == pytest.approx(0.05 - 0.15)


def test_comparison_with_plain_ama_r(setup: SetupResults) -> None:
    (only,) = compare_worst(setup, with_plain_ama_r)
    assert (only.arm, only.baseline) == ("ama-r-odd", "ama-r")
    odd, plain = (setup.values(arm, WORST_GAP) for arm in ("ama-r-odd", "ama-r"))
    assert only.paired.difference.mean == pytest.approx(fmean(odd[seed] - plain[seed] for seed in SEEDS))


def test_arms_are_paired_by_seed_and_not_by_position(file: Path) -> None:
    def edit(rows: list[dict[str, Any]]) -> None:
        rows[:] = [each for each in rows if (each["seed"], each["arm"]) != (1, "ama-r")][::-1]

    setup = change(file, edit)
    (ama,) = (each for each in compare_worst(setup, with_uniform) if each.arm == "ama-r")
    assert ama.paired.difference.mean == pytest.approx(-(0.1 + 0.08 + 0.11 + 0.09) / 4)
    assert ama.paired.seeds == 4
    assert "`ama-r` (4 of 5 seeds)" in "\n".join(tables.arms(setup))


@pytest.fixture
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.usefixtures("_no_warnings")
def test_page(file: Path) -> None:
    path = page.write(file.parent)
    text = path.read_text(encoding="utf-8")
    assert path == file.parent.with_suffix(".md")
    assert text == page.page(file.parent)
    _, arms, difference, *rest = line(text, "`made-up`")
    assert (arms, *rest[:2]) == ("`ama-r` - `uniform`", "5 of 5", ".625")
    assert rest[2:] == [difference, "5 of 5", ".625"], "the excess differs as the gap does"
    low, high = (float(end) for end in re.findall(r"-\.\d+", difference)[1:])
    assert -0.12 <= low < -0.1 < high <= -0.08
    summary = [cells.split(" | ")[1] for cells in text.splitlines() if cells.startswith("| `made-up` |")]
    assert [f"`{arm}` - `{other}`" for arm, other in AMA_AND_UNIFORM] == summary
    assert "n seeds give no p below 2/2^n: .0625 for 5" in text
    assert "The smallest possible p of 5 seeds is .0625 before the correction and .625 after it." in text
    assert "What the pilot showed." in text
    for link in re.findall(r"\]\((quality/[^)]*)\)", text):
        assert (path.parent / link).is_file()
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_tables_of_a_setup(file: Path) -> None:
    text = below(page.page(file.parent), "## `made-up`")
    assert line(text, "`a`") == [
        *("`a`", "-.300 [-.300, -.300]", "5 of 5", "resolved"),
        *("+.500 [+.500, +.500]", "5 of 5", "resolved"),
    ]
    assert line(text, "arm")[1:6] == [
        *("worst gap", "mean gap", "worst excess", "mean excess", "worst accuracy")
    ]
    assert line(text, "`standard`") == [
        *(
            "`standard`",
            ".400 [.400, .400]",
            ".300",
            ".410",
            ".310",
            ".600",
            ".700",
            ".500",
            ".500",
            "2.000",
            ".300",
        ),
        *("12,345", "32"),
    ]
    assert line(text, "`ties`")[-2:] == ["", ""]  # a merge has no training
    assert line(text, "`standard`", 1) == [
        *("`standard`", *("+.200 [+.200, +.200]", "0 of 5", ".625") * 2),
        *(".000 [.000, .000]", "0 of 5, 5 equal", "1"),
    ]
    assert line(text, "`ama-r`", 1)[8:] == ["3 of 5, 2 equal", "1"]
    assert line(text, "`ama-r` - `linear-tuned`")[1].startswith("-.150 [")
    assert "| `ama-r-total` - `uniform-total` |" in text
    assert "| `ama-r-odd` - `ama-r` |" in text
    assert line(text, "`ama-r`", 2) == [
        *("`ama-r`", "`eta` 0.1", "3", "`eta` 0.1: .100; `eta` 0.03: .170; `eta` 0.01: .190")
    ]
    assert "seeds 100, 101 (none of them reported above)" in text
    details = below(text, "Task by task: gap / excess / accuracy / pass rate")
    assert line(details, "`uniform`") == ["`uniform`", ".100 / .110 / .900", ".200 / .210 / .800 / .500"]
    late = below(text, "task weight / pairs a step / training excess")
    assert line(late, "`uniform`") == ["`uniform`", ".250 / 4.000 / .100", ".750 / 12.000 / .200"]


def test_a_specialist_that_is_worse_or_not_resolved(file: Path) -> None:
    """A loss above the reference model's on every seed is resolved; mixed signs are not."""

    def edit(rows: list[dict[str, Any]]) -> None:
        for each in rows:
            if each["arm"] == "specialist-a":
                each["tasks"]["a"] |= {"loss": 1 + each["seed"], "accuracy": 0.7 + (-1) ** each["seed"]}

    cells = line("\n".join(tables.specialists(change(file, edit))), "`a`")
    assert cells[2:4] == ["0 of 5", "**resolved: worse**"]
    assert cells[5:] == ["3 of 5", "not resolved"]


@pytest.mark.usefixtures("_no_warnings")
def test_one_seed_without_pass_rate(tmp_path: Path) -> None:
    write_setup(tmp_path / "quality", "made-up", seeds=1, pass_rate=False)
    text = page.write(tmp_path / "quality").read_text(encoding="utf-8")
    against = below(text, "Each arm minus")
    assert line(against, "`ama-r`") == ["`ama-r`", *("-.100", "1 of 1", "1") * 2, "+.100", "1 of 1", "1"]
    assert "worst accuracy (> 0 is good)" in text
    assert "not resolved" in text
    assert "worst pass rate" not in text


def test_absent_arms_are_omitted(tmp_path: Path) -> None:
    results = tmp_path / "quality"
    assert "##" not in page.page(results)
    write_setup(results, "made-up", without="uniform")
    text = page.write(results).read_text(encoding="utf-8")
    assert "made-up.png" not in text
    assert not (results / "made-up.png").exists()
    assert "`ama-r` - `standard`" in text


def test_overview_of_all_setups(tmp_path: Path) -> None:
    results = tmp_path / "quality"
    first = SetupResults.read(write_setup(results, "first", without="uniform-clip"))
    text = tables.overview([first, SetupResults.read(write_setup(results, "second", seeds=1, without="ama-s"))])
    assert text.splitlines()[0] == "| worst gap | first (5 seeds) | second (1 seed) |"
    assert line(text, "`uniform-clip`") == ["`uniform-clip`", "", ".190"]
    assert line(text, "`ama-s`") == ["`ama-s`", ".200 [.200, .200]", ""]
    assert line(text, "best tuned merge")[1:] == [".250 [.250, .250] `linear-tuned`", ".250 `linear-tuned`"]
    assert len(text.splitlines()) == 2 + 8
    assert text in page.page(results)
    assert "uniform-clip" not in tables.overview([first])


def test_capacity_map(tmp_path: Path) -> None:
    cells = CapacityMap.read(write_map(tmp_path / "quality"))
    assert cells.axis("rank") == [1, 16, "full"]
    assert (cells.axis("steps"), cells.axis("tasks")) == ([100, 400], [3, 8])
    for rank, metric, mean, wins in (
        (1, "worst_excess", -0.1, 3),
        ("full", "worst_excess", 0.05, 0),
        (1, "worst_pass_rate", 0.1, 3),
    ):
        paired = cells.paired(Cell(3, rank, 100), metric)
        assert paired
        assert (paired.difference.mean, paired.wins) == (pytest.approx(mean), wins)
    assert cells.paired(Cell(8, 16, 100), "worst_excess") is None
    text = page.write(tmp_path / "quality").read_text(encoding="utf-8")
    assert "`python -m benchmarks.quality map`; 3 seeds." in text
    assert "](quality/map.png)" in text
    assert (tmp_path / "quality" / "map.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that a test draws."""
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure))
    return drawn


def test_blue_means_better_in_every_row_of_the_map(tmp_path: Path, figures: list[Any]) -> None:
    plots.heat_maps(CapacityMap.read(write_map(tmp_path / "quality")), tmp_path / "map.png")
    panels = [axis for axis in figures[0].axes if axis.get_images()]
    assert [axis.get_title() for axis in panels] == [
        f"{metric}, {count} tasks" for metric in ("worst excess", "worst pass rate") for count in (3, 8)
    ]
    for axis in panels:
        (image,) = axis.get_images()
        rgba = image.to_rgba(image.get_array())
        assert (rgba[0, :, 2] > rgba[0, :, 0] + 0.2).all()  # rank 1, the lowest line
        assert (rgba[2, :, 0] > rgba[2, :, 2] + 0.2).all()  # full
        assert image.norm(0) == 0.5
    assert [text.get_text() for text in panels[2].texts][:1] == ["+.100\n3/3"]


def test_a_map_without_pass_rate(tmp_path: Path) -> None:
    cells = CapacityMap.read(write_map(tmp_path / "quality", pass_rate=False))
    assert cells.worst_metrics() == ["worst_excess"]


def test_forest_has_a_point_an_arm_and_a_close_up(file: Path, figures: list[Any]) -> None:
    def edit(rows: list[dict[str, Any]]) -> None:
        for each in rows:
            if each["arm"] == "ties":
                each["tasks"]["b"]["loss"] = 9.0

    setup = change(file, edit)
    comparisons = compare_worst(setup, with_uniform)
    families = [setup.family(each.arm) for each in comparisons]
    plots.forest(comparisons, families, "made-up", file.with_suffix(".png"))
    near, all_of_them = figures[0].axes
    assert [label.get_text() for label in near.get_yticklabels()][:2] == [
        "standard  0 of 5",
        "uniform-clip  5 of 5",
    ]
    points = [
        each.get_xdata()[0] for each in all_of_them.lines if each.get_marker() == "o" and len(each.get_xdata())
    ]
    assert points == pytest.approx([each.paired.difference.mean for each in comparisons])
    assert max(near.get_xlim()) < 1 < max(all_of_them.get_xlim())
    assert [each.get_marker() for each in near.lines].count(">") >= 1


def test_damaged_results_are_refused(file: Path) -> None:
    content = json.loads(file.read_text())
    for rows, message in (
        ([content["rows"][0]] * 2, "seed 0 has two rows of reference"),
        ([content["rows"][0] | {"family": "odd"}], "family 'odd' of reference"),
    ):
        file.write_text(json.dumps(content | {"rows": rows}))
        with pytest.raises(ValueError, match=f"made-up.json.*{message}"):
            SetupResults.read(file)
    file.write_text("{}")
    with pytest.raises(ValueError, match=r"made-up\.json holds no results of a setup: it lacks setup, command"):
        SetupResults.read(file)


def test_a_damaged_map_is_refused(tmp_path: Path) -> None:
    file = write_map(tmp_path / "quality")
    row = json.loads(file.read_text())["rows"][0]
    for rows, message in (([row] * 2, "two rows of uniform"), ([row | {"method": "odd"}], "'odd'")):
        file.write_text(json.dumps({"command": "", "seeds": [0], "rows": rows}))
        with pytest.raises(ValueError, match=message):
            CapacityMap.read(file)


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (0.0342, False, ".034"),
        (1.0, True, "+1.000"),
        (-0.0214, True, "-.021"),
        (-0.0004, True, ".000"),
        (-1.5, False, "-1.500"),
        (0.9996, False, "1.000"),
        (None, False, ""),
    ],
)
def test_numbers(value: float | None, signed: bool, text: str) -> None:
    assert tables.number(value, signed) == text
