"""Both answers end with the same number."""

import re
from decimal import Decimal

from automixalign.scoring.verifiers.registry import register

_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")
"""With or without commas between thousands; `1, 2` and `1,2` are two numbers."""


@register("number")
def has_same_number(output: str, answer: str) -> bool:
    """Compare the last number of either answer, as GSM8K does (arXiv 2110.14168)."""
    generated, expected = _NUMBER.findall(output), _NUMBER.findall(answer)
    if not generated or not expected:
        return False
    # Floats above 1e308 are all equal, and so are many below.
    return Decimal(generated[-1].replace(",", "")) == Decimal(expected[-1].replace(",", ""))
