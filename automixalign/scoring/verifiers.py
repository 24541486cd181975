"""Hold a generated answer against the right one. A verifier is named in a task's configuration."""

import re
from collections.abc import Callable
from decimal import Decimal

_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")
"""With or without commas between the thousands; `1, 2` and `1,2` are two numbers."""


def _exact(output: str, answer: str) -> bool:
    return output.strip() == answer.strip()


def _contains(output: str, answer: str) -> bool:
    return answer.strip().casefold() in output.casefold()


def _number(output: str, answer: str) -> bool:
    """The last number of the output equals the last number of the answer, as in GSM8K."""
    said, right = _NUMBER.findall(output), _NUMBER.findall(answer)
    if not said or not right:
        return False
    # Not as floats, of which all are equal above 1e308, and many below.
    return Decimal(said[-1].replace(",", "")) == Decimal(right[-1].replace(",", ""))


VERIFIERS: dict[str, Callable[[str, str], bool]] = {
    "exact": _exact,
    "contains": _contains,
    "number": _number,
}
