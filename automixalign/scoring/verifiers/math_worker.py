"""The process of the verifier `math`: reads lines `[answer, output]` of JSON, writes whether they are equal.

The system ends it when one comparison takes too much computing time. A handler in Python could not, because the
power of two integers is one call. math-verify gives Python's `eval` nothing but digits and operators; LaTeX has
a parser of its own.
"""

import json
import logging
import re
import resource
import signal
import sys
from typing import Any

_MEMORY = 4 << 30
_MARKED = re.compile(r"\$|\\boxed|\\\(|\\\[")
"""LaTeX that math-verify finds in a text."""
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")


def _parse(text: str) -> list[Any]:
    """The expressions of an answer; a bare formula, such as `2x+1` or `\\sqrt{2}`, is LaTeX as a whole."""
    from math_verify import parse

    if not _MARKED.search(text) and not _WORD.search(text):
        whole: list[Any] = parse(f"${text.strip()}$", fallback_mode="no_fallback", parsing_timeout=None)
        if whole:
            return whole
    anywhere: list[Any] = parse(text, parsing_timeout=None)
    return anywhere


def _main() -> None:
    from math_verify import verify

    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    seconds = float(sys.argv[1])
    for line in sys.stdin:
        answer, output = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        equal = verify(_parse(answer), _parse(output), timeout_seconds=None)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(bool(equal)), flush=True)  # noqa: T201  the protocol


if __name__ == "__main__":
    _main()
