"""The page of speed goals is generated from the committed results."""

from benchmarks import speed


def test_the_page_is_made_from_the_committed_results() -> None:
    assert speed.PAGE.read_text(encoding="utf-8") == speed.page()


def test_every_goal_was_measured() -> None:
    assert {goal.benchmark for goal in speed.GOALS} == {file.stem for file in speed.RESULTS.glob("*.json")}
