"""The page of the quality benchmark, of made-up results: its numbers are those computed by hand."""

import itertools
import json
import re
import warnings
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from benchmarks.quality import page, plots, shown, tables
from benchmarks.quality.capacity import CapacityMap, Cell
from benchmarks.quality.comparisons import with_as_long, with_plain, with_rivals, with_uniform
from benchmarks.quality.measured import WORST_EXCESS, Measure, Setup

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
"""By how much ama-r's worst excess is below uniform's .2, seed by seed; the mean is .1."""


def family(arm: str) -> str:
    if arm.startswith(("ties", "linear")):
        return "merge"
    return "reference" if arm == "reference" else "specialist" if "specialist" in arm else "generalist"


def row(seed: int, arm: str, generation: bool) -> dict[str, Any]:
    """Task b is the worst one; its excess is ARMS' number, task a's half of it."""
    worst = 0.2 - BELOW[seed] if arm == "ama-r" else ARMS[arm]
    tasks = {
        task: {"excess": excess, "loss": 0.1 + excess, "accuracy": 1 - excess, "margin": 2.0, "drift": excess}
        for task, excess in (("a", worst / 2), ("b", worst))
    }
    if generation:
        tasks["b"]["generation"] = 0.5 + (0.25 if arm == "ama-r" and seed < 3 else 0)
    if arm.startswith("specialist-"):
        tasks[arm[-1]] = {"excess": 0.0, "loss": 0.1, "accuracy": 1.0, "margin": 3.0, "drift": 0.1}
    trained = family(arm) in ("specialist", "generalist")
    cost = {"seconds": 30.0 + seed, "tokens": 12_345, "steps": 100} if trained else {}
    return {
        "seed": seed,
        "arm": arm,
        "family": family(arm),
        "tasks": tasks,
        "seconds": None,
        "tokens": None,
        "steps": None,
    } | cost


def write_setup(
    results: Path, name: str, *, seeds: int = 5, generation: bool = True, without: str = ""
) -> Path:
    rows = [row(seed, arm, generation) for seed in range(seeds) for arm in ARMS if arm != without]
    tried = [{"options": {"eta": eta}, "worst_excess": 0.2 - eta} for eta in (0.01, 0.1, 0.03)]
    found = {
        "setup": name,
        "command": f"python -m benchmarks.quality {name}",
        "pilot": "What the pilot showed.",
        "experiment": {},
        "seeds": list(range(seeds)),
        "tuning_seeds": [100, 101],
        "tuned": {"ama-r": {"chosen": {"eta": 0.1}, "tried": tried}},
        "rows": rows,
    }
    results.mkdir(parents=True, exist_ok=True)
    file = results / f"{name}.json"
    file.write_text(json.dumps(found))
    return file


def write_map(results: Path, generation: bool = True) -> Path:
    """Worst excess: uniform .2, AMA-R .1 at rank 1 and .25 elsewhere; 8 tasks at rank 16 are absent."""
    rows = []
    for seed, rank, steps, tasks in itertools.product(range(3), (16, "full", 1), (400, 100), (8, 3)):
        if (tasks, rank) == (8, 16):
            continue
        for method, worst in (("uniform", 0.2), ("ama-r", 0.1 if rank == 1 else 0.25)):
            found = {"worst_excess": worst, "mean_excess": worst / 2}
            if generation:
                found |= {"worst_generation": 1 - worst, "mean_generation": 1 - worst / 2}
            where = {"seed": seed, "rank": rank, "steps": steps, "tasks": tasks, "method": method}
            rows.append(where | found)
    results.mkdir(parents=True, exist_ok=True)
    file = results / "map.json"
    file.write_text(
        json.dumps({"command": "python -m benchmarks.quality map", "seeds": [0, 1, 2], "rows": rows})
    )
    return file


def line(text: str, begins: str, number: int = 0) -> list[str]:
    """The cells of the table row that begins so."""
    found = [each for each in text.splitlines() if each.startswith(f"| {begins} |")]
    return [cell.strip() for cell in found[number].strip("|").split("|")]


def below(text: str, heading: str) -> str:
    return text[text.index(heading) :]


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup.read(write_setup(tmp_path / "quality", "made-up"))


def test_worst_and_mean_over_tasks(setup: Setup) -> None:
    assert setup.values("standard", WORST_EXCESS) == dict.fromkeys(SEEDS, 0.4)
    assert setup.values("standard", Measure("accuracy", "worst")) == dict.fromkeys(SEEDS, 0.6)
    assert setup.values("standard", Measure("excess")) == pytest.approx(dict.fromkeys(SEEDS, 0.3))
    assert setup.values("standard", Measure("generation")) == dict.fromkeys(SEEDS, 0.5)  # task b alone has it
    assert setup.values("standard", Measure("generation", "task", "a")) == {}


def test_the_arms_come_in_the_pages_order(setup: Setup) -> None:
    assert setup.arms("generalist", "merge") == [
        *("standard", "uniform", "uniform-clip", "ama-r", "ama-s", "ama-r-odd", "uniform-total"),
        *("ama-r-total", "ties", "linear-tuned", "ties-tuned"),
    ]
    assert setup.best_tuned_merge() == "linear-tuned"


def test_the_comparison_with_uniform(setup: Setup) -> None:
    """Ten arms: all but ama-s differ the same way in each of 5 seeds, which is p = .0625, times ten."""
    found = {each.arm: each for each in with_uniform(setup, WORST_EXCESS)}
    assert len(found) == 10
    ama = found["ama-r"].paired
    assert ama.difference.mean == pytest.approx(-0.1)
    assert (ama.wins, ama.ties, ama.p, found["ama-r"].corrected) == (5, 0, 0.0625, 10 * 0.0625)
    assert (found["ama-s"].paired.ties, found["ama-s"].corrected) == (5, 1.0)
    assert found["standard"].paired.difference.mean == pytest.approx(0.2)


def test_the_comparison_with_rivals(setup: Setup) -> None:
    """What is absent (standard-total) is left out: four rivals of each."""
    found = with_rivals(setup, WORST_EXCESS)
    rivals = ["standard", "uniform-clip", "uniform-total", "linear-tuned"]
    assert [(each.arm, each.baseline) for each in found] == [
        (arm, rival) for arm in ("ama-r", "ama-s") for rival in rivals
    ]
    assert found[2].paired.difference.mean == pytest.approx(0.1 - 0.15)
    assert {each.corrected for each in found} == {8 * 0.0625}


def test_the_comparison_of_those_that_train_as_long(setup: Setup) -> None:
    (found,) = with_as_long(setup, WORST_EXCESS)  # without standard-total
    assert (found.arm, found.baseline, found.corrected) == ("ama-r-total", "uniform-total", 0.0625)
    assert found.paired.difference.mean == pytest.approx(0.05 - 0.15)
    assert "| `ama-r-total` - `uniform-total` |" in "\n".join(tables.against_as_long(setup))
    assert "`ama-r-total`'s, .100 below `uniform-total`'s" in "\n".join(page.summary([setup]))


def test_the_comparison_with_plain_ama_r(setup: Setup) -> None:
    (found,) = with_plain(setup, WORST_EXCESS)
    assert (found.arm, found.baseline) == ("ama-r-odd", "ama-r")
    odd, plain = (setup.values(arm, WORST_EXCESS) for arm in ("ama-r-odd", "ama-r"))
    assert found.paired.difference.mean == pytest.approx(fmean(odd[seed] - plain[seed] for seed in SEEDS))
    assert "| `ama-r-odd` - `ama-r` |" in "\n".join(tables.against_plain(setup))


def test_arms_are_paired_by_seed_and_not_by_place(tmp_path: Path) -> None:
    file = write_setup(tmp_path / "quality", "made-up")
    found = json.loads(file.read_text())
    found["rows"] = [each for each in found["rows"] if (each["seed"], each["arm"]) != (1, "ama-r")][::-1]
    file.write_text(json.dumps(found))
    setup = Setup.read(file)
    (ama,) = (each for each in with_uniform(setup, WORST_EXCESS) if each.arm == "ama-r")
    assert ama.paired.difference.mean == pytest.approx(-(0.1 + 0.08 + 0.11 + 0.09) / 4)
    assert ama.paired.seeds == 4
    assert "`ama-r` (4 of 5 seeds)" in "\n".join(tables.arms(setup))


def test_the_page(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_setup(tmp_path / "quality", "made-up")
        place = page.write(tmp_path / "quality")
    text = place.read_text(encoding="utf-8")
    assert place == tmp_path / "quality.md"
    assert text == page.page(tmp_path / "quality")
    sentence = re.search(
        r"^- `made-up` \(5 seeds\): `ama-r`[^[]* below `uniform`'s \[([^]]*), ([^]]*)\], better in", text, re.M
    )
    assert sentence
    assert "lies .100 below `uniform`'s" in text
    assert "better in 5 of 5 seeds, p = .625 corrected, and .050 below `uniform-total`'s" in text
    low, high = (float(end) for end in sentence.groups())
    assert 0.08 <= low < 0.1 < high <= 0.12
    assert "no p of n seeds can be below 2/2^n: .0625 for 5" in text
    assert (
        "With 5 seeds no p can be below .0625 before the correction, nor the smallest of these 10 below .625"
        in text
    )
    assert "What the pilot showed." in text
    for link in re.findall(r"\]\((quality/[^)]*)\)", text):
        assert (tmp_path / link).is_file()
    assert (tmp_path / "quality" / "made-up.png").read_bytes().startswith(b"\x89PNG")


def test_the_tables_of_a_setup(tmp_path: Path) -> None:
    write_setup(tmp_path / "quality", "made-up")
    text = below(page.page(tmp_path / "quality"), "## `made-up`")
    assert line(text, "`a`") == [
        *("`a`", "-.300 [-.300, -.300]", "5 of 5", "resolved"),
        *("+.500 [+.500, +.500]", "5 of 5", "resolved"),
    ]
    assert line(text, "arm")[1:6] == [
        *("worst excess", "mean excess", "worst accuracy", "mean accuracy", "worst generation"),
    ]
    assert line(text, "`standard`") == [
        *("`standard`", ".400 [.400, .400]", ".300", ".600", ".700", ".500", ".500", "2.000", ".300"),
        *("12,345", "32"),
    ]
    assert line(text, "`ties`")[-2:] == ["", ""]  # a merge has no training
    assert line(text, "`standard`", 1) == [
        *("`standard`", "+.200 [+.200, +.200]", "0 of 5", ".625"),
        *(".000 [.000, .000]", "0 of 5, 5 equal", "1"),
    ]
    assert line(text, "`ama-r`", 1)[5:] == ["3 of 5, 2 equal", "1"]
    assert line(text, "`ama-r` - `linear-tuned`")[1].startswith("-.150 [")
    assert line(text, "`ama-r`", 2) == ["`ama-r`", "3", "`eta` 0.1"]
    assert line(text, "`ama-r`", 3) == ["`ama-r`", "`eta` 0.1", ".100", "yes"]  # the best one first
    assert "none of them among the seeds" in text
    details = below(text, "Task by task")
    assert line(details, "`uniform`") == ["`uniform`", ".100", ".200"]
    assert line(details, "generation") == ["generation", "`b`"]


def test_a_specialist_that_is_no_better(tmp_path: Path) -> None:
    """Loss above the reference's in every seed is resolved, but not as it should be; mixed signs are not."""
    file = write_setup(tmp_path / "quality", "made-up")
    found = json.loads(file.read_text())
    for each in found["rows"]:
        if each["arm"] == "specialist-a":
            each["tasks"]["a"] |= {"loss": 1 + each["seed"], "accuracy": 0.7 + (-1) ** each["seed"]}
    file.write_text(json.dumps(found))
    cells = line("\n".join(tables.specialists(Setup.read(file))), "`a`")
    assert cells[2:4] == ["0 of 5", "**resolved: worse**"]
    assert cells[5:] == ["3 of 5", "not resolved"]


def test_one_seed_and_no_generation(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_setup(tmp_path / "quality", "made-up", seeds=1, generation=False)
        text = page.write(tmp_path / "quality").read_text(encoding="utf-8")
    assert line(text, "`ama-r`", 2) == ["`ama-r`", "-.100", "1 of 1", "1", "+.100", "1 of 1", "1"]
    assert "of worst accuracy (> 0 is good)" in text
    assert "not resolved" in text
    assert "worst generation" not in text


def test_what_is_absent_is_left_out(tmp_path: Path) -> None:
    results = tmp_path / "quality"
    assert "##" not in page.page(results)
    write_setup(results, "made-up", without="uniform")
    text = page.write(results).read_text(encoding="utf-8")
    assert "made-up.png" not in text
    assert not (results / "made-up.png").exists()
    assert "`ama-r` - `standard`" in text


def test_the_readmes_table(tmp_path: Path) -> None:
    results = tmp_path / "quality"
    first = Setup.read(write_setup(results, "first", without="uniform-clip"))
    second = Setup.read(write_setup(results, "second", seeds=1, without="ama-s"))
    text = tables.readme_table([first, second])
    assert text.splitlines()[0] == "| worst excess | first (5 seeds) | second (1 seed) |"
    assert line(text, "`uniform-clip`") == ["`uniform-clip`", "", ".190"]
    assert line(text, "`ama-s`") == ["`ama-s`", ".200 [.200, .200]", ""]
    assert line(text, "best tuned merge")[1:] == [".250 [.250, .250] `linear-tuned`", ".250 `linear-tuned`"]
    assert len(text.splitlines()) == 2 + 8
    assert text in page.page(results)
    assert "uniform-clip" not in tables.readme_table([first])


def test_the_map(tmp_path: Path) -> None:
    found = CapacityMap.read(write_map(tmp_path / "quality"))
    assert found.axis("rank") == [1, 16, "full"]
    assert (found.axis("steps"), found.axis("tasks")) == ([100, 400], [3, 8])
    low, high = (found.paired(Cell(3, rank, 100), "worst_excess") for rank in (1, "full"))
    assert low
    assert high
    assert (low.difference.mean, low.wins) == (pytest.approx(-0.1), 3)
    assert (high.difference.mean, high.wins) == (pytest.approx(0.05), 0)
    generation = found.paired(Cell(3, 1, 100), "worst_generation")
    assert generation
    assert (generation.difference.mean, generation.wins) == (pytest.approx(0.1), 3)
    assert found.paired(Cell(8, 16, 100), "worst_excess") is None
    text = page.write(tmp_path / "quality").read_text(encoding="utf-8")
    assert line(text, "3 | full | 400")[3:] == [
        *(".200", ".250", "+.050 [+.050, +.050]", "0 of 3", ".800", ".750", "-.050 [-.050, -.050]", "0 of 3"),
        *(".100, .125", ".900, .875"),
    ]
    assert [cells.split("|")[1:4] for cells in text.splitlines() if cells.startswith("| 8 ")] == [
        [" 8 ", f" {rank} ", f" {steps} "] for rank in (1, "full") for steps in (100, 400)
    ]
    assert (tmp_path / "quality" / "map.png").read_bytes().startswith(b"\x89PNG")


def test_the_maps_colours_have_one_sense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where AMA-R is better is blue in both rows, where it is worse red; equal distances, equal strength."""
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    plots.heat_maps(CapacityMap.read(write_map(tmp_path / "quality")), tmp_path / "map.png")
    panels = [axis for axis in figures[0].axes if axis.get_images()]
    assert [axis.get_title() for axis in panels] == [
        f"{metric}, {count} tasks" for metric in ("worst excess", "worst generation") for count in (3, 8)
    ]
    for axis in panels:
        (image,) = axis.get_images()
        rgba = image.to_rgba(image.get_array())
        assert (rgba[0, :, 2] > rgba[0, :, 0] + 0.2).all()  # rank 1, the lowest line
        assert (rgba[2, :, 0] > rgba[2, :, 2] + 0.2).all()  # full
        assert image.norm(0) == 0.5
    assert [text.get_text() for text in panels[2].texts][:1] == ["+.100\n3/3"]


def test_a_map_without_generation(tmp_path: Path) -> None:
    found = CapacityMap.read(write_map(tmp_path / "quality", generation=False))
    assert found.metrics() == ["worst_excess"]
    assert "generation:" not in page.write(tmp_path / "quality").read_text(encoding="utf-8")


def test_the_forest_has_a_point_an_arm_and_a_close_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    file = write_setup(tmp_path / "quality", "made-up")
    found = json.loads(file.read_text())
    for each in found["rows"]:
        if each["arm"] == "ties":
            each["tasks"]["b"]["excess"] = 9.0
    file.write_text(json.dumps(found))
    setup = Setup.read(file)
    compared = [(setup.family(each.arm), each) for each in with_uniform(setup, WORST_EXCESS)]
    plots.forest(compared, "made-up", tmp_path / "forest.png")
    near, all_of_them = figures[0].axes
    assert [label.get_text() for label in near.get_yticklabels()][:2] == [
        "standard  0 of 5",
        "uniform-clip  5 of 5",
    ]
    points = [
        each.get_xdata()[0] for each in all_of_them.lines if each.get_marker() == "o" and len(each.get_xdata())
    ]
    assert points == pytest.approx([each.paired.difference.mean for _, each in compared])
    assert max(near.get_xlim()) < 1 < max(all_of_them.get_xlim())
    assert [each.get_marker() for each in near.lines].count(">") >= 1


def test_what_is_refused(tmp_path: Path) -> None:
    file = write_setup(tmp_path / "quality", "made-up")
    found = json.loads(file.read_text())
    for change, message in (
        ({"rows": [found["rows"][0]] * 2}, "seed 0 has two rows of reference"),
        ({"rows": [found["rows"][0] | {"family": "odd"}]}, "family 'odd' of reference"),
    ):
        file.write_text(json.dumps(found | change))
        with pytest.raises(ValueError, match=f"made-up.json.*{message}"):
            Setup.read(file)
    file.write_text("{}")
    with pytest.raises(ValueError, match=r"made-up\.json holds no results of a setup: it lacks setup, command"):
        Setup.read(file)
    chart = write_map(tmp_path / "quality")
    rows = json.loads(chart.read_text())["rows"]
    for wrong, message in (([rows[0]] * 2, "two rows of uniform"), ([rows[0] | {"method": "odd"}], "'odd'")):
        chart.write_text(json.dumps({"command": "", "seeds": [0], "rows": wrong}))
        with pytest.raises(ValueError, match=message):
            CapacityMap.read(chart)


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
    assert shown.number(value, signed) == text
