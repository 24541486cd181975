"""The grids on the report of a run."""

from typing import Any

from automixalign.report.facts.grids import grids
from automixalign.report.facts.limits import limits
from tests.report.report_run import experiment


def entry(model: str, validation: float, test: float) -> dict[str, Any]:
    worst = {"worst": {"gap": test}, "validation": {"worst": {"gap": validation}}}
    return {"model": model, "family": "generalist", **worst}


def test_a_point_is_chosen_on_the_validation_split_of_its_grid() -> None:
    """The last point is best on the test split, and `uniform` on both; neither has a part in the choice."""
    grid = {"method": "ama-r", "c": 0.2, "eta": [0.01, 0.1, 0.3]}
    checked = experiment(methods=["uniform", {"grid": grid}], merges=[])
    names = [method.name for method in checked.methods]
    entries = [entry(*row) for row in zip(names, (0.0, 0.3, 0.2, 0.4), (0.0, 0.3, 0.5, 0.1), strict=True)]
    (facts,) = grids(checked, entries)
    assert (facts["name"], facts["keys"], facts["chosen"]) == ("ama-r", ["eta"], "ama-r-eta0p1")
    assert [point["values"]["eta"] for point in facts["points"]] == [0.01, 0.1, 0.3]
    chosen = facts["points"][1]
    assert (chosen["model"], chosen["validation"], chosen["test"]) == ("ama-r-eta0p1", 0.2, 0.5)


def test_a_run_without_a_grid_has_none() -> None:
    assert grids(experiment(), []) == []


def test_the_limits_name_the_methods_with_a_learning_rate_of_their_own() -> None:
    tasks = [{"pairs": {"train": 100}}]
    rates = {"grid": {"method": "uniform", "learning_rate": [1e-4, 0.5]}}
    sentences = limits(experiment(methods=["ama-r", rates]), {}, tasks)
    named = "(uniform-lr1e-4 0.0001, uniform-lr0p5 0.5), so methods are not compared at equal rates"
    assert [named in sentence for sentence in sentences].count(True) == 1
    assert any("and the same learning rate" in sentence for sentence in limits(experiment(), {}, tasks))
