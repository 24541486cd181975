"""Both answers end with the same number."""

import re
from decimal import Decimal

from automixalign.scoring.verifiers.registry import register
from automixalign.scoring.verifiers.verifier import Generated, Verifier

_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")
"""With or without commas between thousands; `1, 2` and `1,2` are two numbers."""


@register("number")
class Number(Verifier):
    """The last number of both answers is the same, as in GSM8K (arXiv 2110.14168)."""

    def passes(self, generated: Generated) -> bool:
        """Compare the last numbers."""
        found, expected = _NUMBER.findall(generated.output), _NUMBER.findall(generated.answer)
        if not found or not expected:
            return False
        # Floats above 1e308 are all equal, and so are many below.
        return Decimal(found[-1].replace(",", "")) == Decimal(expected[-1].replace(",", ""))
