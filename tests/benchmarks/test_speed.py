"""The page of speed goals is generated from the committed results."""

from benchmarks import speed


def test_the_page_is_made_of_the_results_that_lie_there() -> None:
    assert speed.PAGE.read_text(encoding="utf-8") == speed.page()


def test_every_goal_was_measured() -> None:
    assert {goal.benchmark for goal in speed.GOALS} == {
        file.stem for file in speed.RESULTS.glob("*.json") if not file.stem.endswith(".before")
    }
