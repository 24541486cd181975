"""The generated answer matches a regular expression."""

from typing import Annotated, ClassVar

import regex
from pydantic import AfterValidator

from automixalign.scoring.verifiers.registry import register
from automixalign.scoring.verifiers.verifier import Generated, Undecided, Verifier
from automixalign.system.schema import Flag

_SECONDS = 5
"""A pattern such as `(a+)+b` takes exponential time on some answers."""


def _check_pattern(pattern: str) -> str:
    try:
        regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"no regular expression: {error}") from error
    return pattern


@register("regex")
class MatchesRegex(Verifier):
    """The answer contains a match of `pattern`; with `whole`, the stripped answer is one."""

    needs_answer: ClassVar[bool] = False
    pattern: Annotated[str, AfterValidator(_check_pattern)]
    """A regular expression of Python; `(?i)` at its start ignores case."""
    whole: Flag = False
    """Whether the whole answer must match, without the blanks around it."""

    def passes(self, generated: Generated) -> bool:
        """Search for the pattern."""
        try:
            if self.whole:
                return bool(regex.fullmatch(self.pattern, generated.output.strip(), timeout=_SECONDS))
            return bool(regex.search(self.pattern, generated.output, timeout=_SECONDS))
        except TimeoutError:
            raise Undecided(f"the pattern takes longer than {_SECONDS} s") from None
