"""The page of the goals for speed is what the benchmarks' results say, and the README has its table."""

from pathlib import Path

from benchmarks import speed

README = Path(__file__).parents[2] / "README.md"


def test_the_page_is_made_of_the_results_that_lie_there() -> None:
    assert speed.PAGE.read_text(encoding="utf-8") == speed.page()


def test_every_goal_was_measured() -> None:
    assert {goal.benchmark for goal in speed.GOALS} == {
        file.stem for file in speed.RESULTS.glob("*.json") if not file.stem.endswith(".before")
    }


def test_the_readme_has_its_table() -> None:
    _, _, table = speed.page().partition("\n\n|")
    assert f"|{table}" in README.read_text(encoding="utf-8")
