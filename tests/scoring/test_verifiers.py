"""Verifiers: which generation passes."""

import pytest

from automixalign.scoring.verifiers import VERIFIERS


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
        # Other digits, and more of them than a float can tell apart.
        ("number", "\u0663", "3", True),
        ("number", "9" * 400, "8" * 400, False),
        ("number", "9007199254740993", "9007199254740992", False),
        ("number", "9" * 100_000, "9" * 100_000, True),
    ],
)
def test_verifiers(verifier: str, output: str, answer: str, passes: bool) -> None:
    assert VERIFIERS[verifier](output, answer) is passes
