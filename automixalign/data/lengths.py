"""The lengths of pairs in one byte each: a bin of a histogram, and which answers are too long."""

import numpy as np
import numpy.typing as npt

from automixalign.data.tokens import Tokens

BINS = 16
"""Bins up to `max_length`; one more holds the longer pairs."""
_BIN_MASK, _LONG_CHOSEN, _LONG_REJECTED = 31, 32, 64

Lengths = npt.NDArray[np.uint8]
"""A code for each pair."""


def bin_width(max_length: int) -> int:
    """How many lengths a bin holds."""
    return -(-max_length // BINS)


def length_code(tokens: Tokens, max_length: int) -> int:
    """The code of a pair."""
    over = tokens.length > max_length
    number = BINS if over else max(0, tokens.length - 1) // bin_width(max_length)
    return number | _LONG_CHOSEN * tokens.long_chosen | _LONG_REJECTED * tokens.long_rejected


def histogram(codes: Lengths) -> list[int]:
    """The number of pairs in each bin."""
    counts: list[int] = np.bincount(codes & _BIN_MASK, minlength=BINS + 1).tolist()
    return counts


def count_long_answers(codes: Lengths) -> dict[str, int]:
    """The number of pairs with an answer that is too long, and how often it is which."""
    chosen, rejected = (codes & _LONG_CHOSEN) > 0, (codes & _LONG_REJECTED) > 0
    return {
        "pairs": int((chosen | rejected).sum()),
        "chosen": int(chosen.sum()),
        "rejected": int(rejected.sum()),
    }
