"""Verifiers: which generation passes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from automixalign.config.experiment import parse_experiment
from automixalign.preflight.names import check_names
from automixalign.scoring.verifiers.registry import register, registered_verifiers
from automixalign.system.errors import ConfigError
from automixalign.system.plugins import outside_modules
from tests.system.packages import Package


@pytest.mark.parametrize(
    ("verifier", "output", "answer", "passes"),
    [
        ("exact", " 4\n", "4", True),
        ("exact", "4.", "4", False),
        ("contains", "It is PARIS, of course", "Paris", True),
        ("contains", "It is Lyon", "Paris", False),
        ("number", "2 + 2 = 4", "4", True),
        ("number", "#### 1,234.50", "1234.5", True),
        ("number", "it is -3", "3", False),
        ("number", "it is 007", "7", True),
        ("number", "no idea", "7", False),
        ("number", "7", "no number", False),
        # Commas are part of a number only between thousands.
        ("number", "the pair 1,2", "2", True),
        ("number", "the pair 1,2", "12", False),
        ("number", "1,,2", "2", True),
        ("number", "1,2345", "2345", True),
        ("number", "12,345,678", "12345678", True),
        # Other digits, and more digits than a float distinguishes.
        ("number", "\u0663", "3", True),
        ("number", "9" * 400, "8" * 400, False),
        ("number", "9007199254740993", "9007199254740992", False),
        ("number", "9" * 100_000, "9" * 100_000, True),
    ],
)
def test_verifiers(verifier: str, output: str, answer: str, passes: bool) -> None:
    assert registered_verifiers()[verifier](output, answer) is passes


def test_an_unknown_verifier_is_refused(experiment_data: dict[str, Any]) -> None:
    experiment_data["tasks"][1]["verifier"] = "regex"
    experiment = parse_experiment(experiment_data, "the test")
    with pytest.raises(ConfigError, match=r"^tasks\.format\.verifier: .*'regex'; .*contains, exact, number"):
        check_names(experiment)


def test_a_name_belongs_to_one_verifier() -> None:
    with pytest.raises(ValueError, match=r"'exact' is defined twice: in .*exact and .*test_verifiers"):
        register("exact")(lambda output, answer: output != answer)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Install a package that declares a module's function as the verifier `polite`."""
    code = "def is_polite(output, answer):\n    return output == f'{answer}, please'\n"
    package = Package(tmp_path, monkeypatch, "polite", code)

    def write(function: str) -> None:
        package.declare("automixalign.verifiers", "polite", function)
        registered_verifiers.cache_clear()

    yield write
    registered_verifiers.cache_clear()


def test_a_package_adds_a_verifier(install: Callable[[str], None], experiment_data: dict[str, Any]) -> None:
    install("is_polite")
    assert registered_verifiers()["polite"]("water, please", "water")
    assert not registered_verifiers()["polite"]("water", "water")
    experiment_data["tasks"][0]["verifier"] = "polite"
    check_names(parse_experiment(experiment_data, "the test"))
    assert outside_modules("verifier", ["polite", "exact"]) == ["polite_package"]


def test_a_verifier_that_cannot_be_loaded_is_named(install: Callable[[str], None]) -> None:
    install("is_rude")
    with pytest.raises(ConfigError, match=r"'polite' cannot be loaded from .*:is_rude: .*uninstall"):
        registered_verifiers()
