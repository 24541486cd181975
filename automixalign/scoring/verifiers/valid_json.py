"""The generated answer is JSON."""

import json
import re
from typing import ClassVar

from pydantic import Field

from automixalign.scoring.verifiers.registry import register
from automixalign.scoring.verifiers.verifier import Generated, Verifier
from automixalign.system.schema import Flag, Text

_CODE_BLOCK = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL | re.IGNORECASE)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


@register("json")
class ValidJson(Verifier):
    """The whole answer is JSON; with `keys`, an object that has them."""

    needs_answer: ClassVar[bool] = False
    keys: list[Text] = Field(default_factory=list)
    """Keys that the object must have."""
    code_block: Flag = False
    """Whether the JSON may be in a code block of Markdown."""

    def passes(self, generated: Generated) -> bool:
        """Parse the answer."""
        text = generated.output.strip()
        if self.code_block and (block := _CODE_BLOCK.fullmatch(text)):
            text = block[1]
        try:
            value = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return False
        return not self.keys or (isinstance(value, dict) and value.keys() >= set(self.keys))
