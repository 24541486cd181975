"""Verifiers: which generation passes."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from automixalign.config.data import VerifierSpec
from automixalign.config.experiment import parse_experiment
from automixalign.preflight.names import check_names
from automixalign.scoring.verifiers import matches_regex, math_equal
from automixalign.scoring.verifiers.registry import make_verifier, register, registered_verifiers
from automixalign.scoring.verifiers.verifier import Generated, Undecided, Verifier
from automixalign.system.errors import ConfigError
from automixalign.system.plugins import outside_modules
from tests.system.packages import Package


class Verdictless(Verifier):
    """A verifier that shares its name with another."""


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
    assert passes_with({"name": verifier}, output, answer) is passes


def passes_with(spec: dict[str, Any], output: str, answer: str = "") -> bool:
    return make_verifier(VerifierSpec.model_validate(spec)).passes(Generated("2+2?", output, answer, {}))


@pytest.mark.parametrize(
    ("output", "answer", "passes"),
    [
        (r"so $\frac{1}{2}$ of it", "1/2", True),
        ("0.5", "1/2", True),
        ("$1 + 2x$", "2x+1", True),
        ("2", "2x+1", False),  # not the first number of it
        (r"\boxed{\sqrt{2}}", r"\sqrt{2}", True),
        ("it is 72.", "48 + 24 = 72. #### 72", True),
        ("3", "x=3", True),
        ("10%", "0.1", True),
        ("4", "3", False),
        ("no idea", "3", False),
        ("__import__('os').abort()", "1", False),
    ],
)
def test_math(output: str, answer: str, passes: bool) -> None:
    assert passes_with({"name": "math"}, output, answer) is passes


def test_math_ends_a_comparison_that_takes_too_long_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """No handler in Python interrupts the power of two integers. This works in a thread, too."""
    monkeypatch.setattr(math_equal, "_process", process := math_equal._Process())
    monkeypatch.setattr(math_equal, "_SECONDS", 0.5)
    with pytest.raises(Undecided, match="too much time or memory"), ThreadPoolExecutor(1) as threads:
        threads.submit(passes_with, {"name": "math"}, "$9^{9^{9^9}}$", "7").result()
    assert passes_with({"name": "math"}, "7.0", "7")
    process.end()


@pytest.mark.parametrize(
    ("options", "output", "passes"),
    [
        ({}, ' {"a": [1, null]}\n', True),
        ({}, '{"a": NaN}', False),
        ({}, "{'a': 1}", False),
        ({}, '{"a": 1} and so on', False),
        ({}, "[" * 100_000, False),
        ({"keys": ["a"]}, '{"a": 1, "b": 2}', True),
        ({"keys": ["a", "c"]}, '{"a": 1, "b": 2}', False),
        ({"keys": ["a"]}, '["a"]', False),
        ({}, '```json\n{"a": 1}\n```', False),
        ({"code_block": True}, '```json\n{"a": 1}\n```', True),
        ({"code_block": True}, '{"a": 1}', True),
    ],
)
def test_json(options: dict[str, Any], output: str, passes: bool) -> None:
    assert passes_with({"name": "json", **options}, output) is passes


@pytest.mark.parametrize(
    ("options", "output", "passes"),
    [
        ({"pattern": "^No"}, "No.", True),
        ({"pattern": "^No"}, "no", False),
        ({"pattern": "(?i)^no"}, "No", True),
        ({"pattern": r"\d+"}, "it is 4", True),
        ({"pattern": r"\d+", "whole": True}, "it is 4", False),
        ({"pattern": r"\d+", "whole": True}, " 4\n", True),
    ],
)
def test_regex(options: dict[str, Any], output: str, passes: bool) -> None:
    assert passes_with({"name": "regex", **options}, output) is passes


def test_a_pattern_that_takes_too_long_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matches_regex, "_SECONDS", 0.1)
    with pytest.raises(Undecided, match=r"takes longer than 0\.1 s"):
        passes_with({"name": "regex", "pattern": r"(?:a|a)+b"}, "a" * 64)


@pytest.mark.parametrize(
    ("verifier", "message"),
    [
        (
            "regx",
            r"unknown verifier 'regx' \(did you mean 'regex'\?\); there are: contains, exact, json, math,",
        ),
        ({"name": "regex"}, "verifier regex: pattern: Field required"),
        ({"name": "regex", "pattern": "("}, r"verifier regex: pattern: no regular expression: missing \)"),
        ({"name": "json", "key": ["a"]}, r"verifier json: key: unknown key \(did you mean 'keys'"),
    ],
)
def test_an_impossible_verifier_is_refused(
    experiment_data: dict[str, Any], verifier: Any, message: str
) -> None:
    experiment_data["tasks"][1]["verifier"] = verifier
    with pytest.raises(ConfigError, match=rf"^tasks\.format\.verifier: {message}"):
        check_names(parse_experiment(experiment_data, "the test"))


def test_a_name_belongs_to_one_verifier() -> None:
    with pytest.raises(ValueError, match=r"'exact' is defined twice: in .*exact and .*test_verifiers"):
        register("exact")(Verdictless)


@pytest.fixture
def install(own_plugins: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Install a package that declares a class of its module as the verifier `polite`."""
    code = """
from automixalign.scoring.verifiers.verifier import Verifier

class Polite(Verifier):
    word: str = "please"

    def passes(self, generated):
        return generated.output == f"{generated.answer}, {self.word}"

def is_polite(output, answer):
    return True
"""
    package = Package(tmp_path, monkeypatch, "polite", code)

    def write(item: str) -> None:
        package.declare("automixalign.verifiers", "polite", item)
        registered_verifiers.cache_clear()

    return write


def test_a_package_adds_a_verifier(install: Callable[[str], None], experiment_data: dict[str, Any]) -> None:
    install("Polite")
    assert passes_with({"name": "polite"}, "water, please", "water")
    assert not passes_with({"name": "polite", "word": "now"}, "water, please", "water")
    experiment_data["tasks"][0]["verifier"] = {"name": "polite", "word": "now"}
    check_names(parse_experiment(experiment_data, "the test"))
    assert outside_modules("verifier", ["polite", "exact"]) == ["polite_package"]


def test_a_verifier_that_cannot_be_loaded_is_named(install: Callable[[str], None]) -> None:
    install("is_rude")
    with pytest.raises(ConfigError, match=r"'polite' cannot be loaded from .*:is_rude: .*uninstall"):
        registered_verifiers()
    install("is_polite")
    with pytest.raises(ConfigError, match=r":is_polite: it is no subclass of Verifier"):
        registered_verifiers()
