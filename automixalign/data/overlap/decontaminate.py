"""Find prompts that occur in the test sets of others, by 13 words in a row.

The rule is that of GPT-3 (arXiv 2005.14165, appendix C): lower case, words alone, any 13 in a row.
"""

import hashlib
import re
from collections.abc import Iterator
from typing import Any

from automixalign.config.data import DecontaminationSpec
from automixalign.data.reading.row import Unreadable
from automixalign.data.reading.rows import open_source
from automixalign.system.errors import DataError

_WORDS = re.compile(r"\w+")
_GRAM_WORDS = 13


class Contamination:
    """The word sequences of some sources, 8 bytes each.

    Args:
        test_sets: all texts of a row count, or those of the test set's `columns` alone.

    Raises:
        DataError, StorageError: a source is missing, one of its rows is unreadable, or no row has a column
            of `columns`.
    """

    def __init__(self, test_sets: list[DecontaminationSpec]) -> None:
        self._grams: set[bytes] = set()
        for spec in test_sets:
            columns = spec.columns
            with open_source("decontaminate", spec, columns) as rows:
                other_splits = [file for file, why in rows.passed_over.items() if why.startswith("split ")]
                if spec.split is None and other_splits:
                    raise DataError(
                        f"decontaminate: {spec.path} has several splits; name the 'split' to compare with"
                    )
                unseen = set(columns or ())
                for row in rows:
                    if isinstance(row.data, Unreadable):
                        raise DataError(f"decontaminate: {row.where}: {row.data.problem}")
                    unseen.difference_update(row.data)
                    for name, value in row.data.items():
                        if columns is None or name in columns:
                            self._grams.update(gram for text in _texts(value) for gram in _grams(text))
                if unseen:
                    raise DataError(
                        f"decontaminate: {spec.path}: no row has the column {min(unseen)!r:.80}, which "
                        "'columns' names"
                    )

    def __contains__(self, prompt: object) -> bool:
        return isinstance(prompt, str) and any(gram in self._grams for gram in _grams(prompt))


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _grams(text: str) -> Iterator[bytes]:
    """A digest of each 13 words in a row; of the whole text, if it has fewer words."""
    words = _WORDS.findall(text.casefold())
    for start in range(max(1, len(words) - _GRAM_WORDS + 1) if words else 0):
        gram = " ".join(words[start : start + _GRAM_WORDS])
        yield hashlib.blake2b(gram.encode(), digest_size=8).digest()
