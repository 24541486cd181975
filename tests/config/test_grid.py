"""Grids of methods: the points, their names, and what is refused."""

from typing import Any

import pytest
import yaml

from automixalign.config.experiment import parse_experiment
from automixalign.config.file import dump_yaml, override
from automixalign.config.plan import Plan
from automixalign.system.errors import ConfigError
from tests.preflight.test_json_schema import faults

Data = dict[str, Any]
GRID = {"method": "ama-r", "c": 0.2, "eta": [0.01, 0.3], "learning_rate": ["1e-4", 3e-4]}


@pytest.fixture
def data(experiment_data: Data) -> Data:
    """An experiment with a method and a grid of four points."""
    return experiment_data | {"methods": ["uniform", {"grid": GRID}]}


def test_a_grid_is_every_combination(data: Data) -> None:
    experiment = parse_experiment(data, "test")
    assert [(each.name, each.options, each.learning_rate) for each in experiment.methods] == [
        ("uniform", {}, None),
        ("ama-r-eta0p01-lr1e-4", {"c": 0.2, "eta": 0.01}, 1e-4),
        ("ama-r-eta0p01-lr3e-4", {"c": 0.2, "eta": 0.01}, 3e-4),
        ("ama-r-eta0p3-lr1e-4", {"c": 0.2, "eta": 0.3}, 1e-4),
        ("ama-r-eta0p3-lr3e-4", {"c": 0.2, "eta": 0.3}, 3e-4),
    ]
    assert parse_experiment(yaml.safe_load(dump_yaml(experiment)), "the resolved one") == experiment


def test_a_point_trains_as_the_method_of_its_own_would(data: Data) -> None:
    """Its settings are equal, so its cached training is; specialists and other methods do not see the grid."""
    alone = {"method": "ama-r", "name": "ama-r-eta0p3-lr3e-4", "c": 0.2, "eta": 0.3, "learning_rate": 3e-4}
    fingerprints = dict.fromkeys(("base_model", "arithmetic", "format"), "")
    grid, methods = (
        Plan.of(parse_experiment(each, "test"), fingerprints)
        for each in (data, data | {"methods": ["uniform", alone]})
    )
    assert [grid.generalists[0], grid.generalists[-1]] == methods.generalists
    assert grid.specialist == methods.specialist
    assert grid.generalists[-1].budget.learning_rate == 3e-4
    assert grid.generalists[0].budget.learning_rate is None


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        ({"name": "a", "eta": [0.25, 1e-5, 0.001, 2]}, ["a-eta0p25", "a-eta1e-5", "a-eta1e-3", "a-eta2"]),
        ({"method": "pike", "zeta1": [0.1, 1]}, ["pike-zeta1-0p1", "pike-zeta1-1"]),
        ({"allocate": [True, False]}, ["ama-r-allocate", "ama-r-no-allocate"]),
        ({"init": ["linear"]}, ["ama-r-init-linear"]),
        ({"average_iterates": [None, 0.5]}, ["ama-r-average1", "ama-r-average0p5"]),
        (
            {"method": "static", "weights": [{"arithmetic": 1, "format": 1}, {"arithmetic": 2, "format": 1}]},
            ["static-weights1", "static-weights2"],
        ),
    ],
)
def test_points_are_named_by_their_values(data: Data, keys: Data, names: list[str]) -> None:
    data["methods"] = [{"grid": {"method": "ama-r", **keys}}]
    assert [method.name for method in parse_experiment(data, "test").methods] == names


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eta": [0.1, -1]}, r"methods.ama-r.grid.eta: .*greater than or equal to 0 \(it is -1\)"),
        ({"etta": [0.1]}, r"methods.ama-r.grid.etta: unknown key \(did you mean 'eta'\?\)"),
        ({"method": "ama-x"}, r"methods.ama-x.grid: unknown method 'ama-x' \(did you mean 'ama-s'\?\)"),
        ({"method": ["ama-r", "ama-s"]}, r"methods.1.grid.method: .*valid string"),
        ({"eta": [0.1, 0.1]}, "methods.ama-r.grid: 'eta' needs values, each of them once"),
        ({"eta": [1, 1.0]}, "methods.ama-r.grid: 'eta' needs values, each of them once"),
        ({"eta": []}, "methods.ama-r.grid: 'eta' needs values"),
        ({"eta": 0.1, "learning_rate": 0.1}, "methods.ama-r.grid: a grid needs a key with a list of values"),
        ({"eta": [*range(33)]}, r"methods.ama-r.grid: it has 66 points \(eta, learning_rate\); 64 at most"),
        (
            {"name": "x" * 30},
            "methods.x+.grid: 'name': the point x+-eta0p01-lr1e-4 has more than 40 characters",
        ),
        ({"name": "a/b"}, "methods.1.grid.name: .*match pattern"),
        ({"name": "specialist"}, "the name 'specialist-eta0p01-lr1e-4' is reserved"),
    ],
)
def test_refusals_name_the_key(data: Data, changes: Data, message: str) -> None:
    data["methods"] = ["uniform", {"grid": GRID | changes}]
    with pytest.raises(ConfigError, match=message):
        parse_experiment(data, "test")


def test_a_key_beside_the_grid_is_refused_with_its_place(data: Data) -> None:
    override(data, "methods.ama-r.eta", 0.1)
    with pytest.raises(ConfigError, match=r"methods.ama-r.eta: unknown key \(did you mean 'grid.eta'\?\)"):
        parse_experiment(data, "test")


def test_the_command_line_changes_a_grid_by_its_name(data: Data) -> None:
    override(data, "methods.ama-r.grid.eta", [0.5])
    override(data, "methods.ama-r.grid.name", "swept")
    override(data, "methods.swept.grid.learning_rate", 0.1)
    methods = parse_experiment(data, "test").methods
    assert [(each.name, each.learning_rate) for each in methods[1:]] == [("swept-eta0p5", 0.1)]


def test_a_grid_needs_a_validation_split(data: Data) -> None:
    data["split"] = {"validation": 0, "test": 0.2}
    with pytest.raises(ConfigError, match=r"a grid.s point is chosen on the validation split"):
        parse_experiment(data, "test")


def test_an_editor_knows_grids(data: Data) -> None:
    assert faults(data) == []
    data["methods"] = [{"grid": GRID | {"c": ["much"]}}]
    assert faults(data)
