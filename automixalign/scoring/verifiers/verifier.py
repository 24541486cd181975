"""The base of verifiers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from automixalign.system.schema import Schema


class Generated(NamedTuple):
    """A generated answer, and what a verifier may compare it with."""

    prompt: str | list[dict[str, Any]]
    """Text, or messages with `role` and `content`."""
    output: str
    """What the model answers, without special tokens."""
    answer: str
    """The right answer; empty where the row has none."""
    row: Mapping[str, Any]
    """The verifier's `columns` of the row, as the source has them."""


class Undecided(ValueError):  # noqa: N818  no error: the answer is well-formed
    """A verifier cannot decide. The answer then counts as failed, and a warning counts the reason, the text."""


class Verifier(Schema, ABC):
    """Decides whether a generated answer passes. The fields of a subclass are its options."""

    columns: ClassVar[tuple[str, ...]] = ()
    """The columns that `passes` reads of a row; dots lead to a field inside one. Every row must have them."""
    needs_answer: ClassVar[bool] = True
    """Whether every row must have an `answer`, which must itself pass."""

    @abstractmethod
    def passes(self, generated: Generated) -> bool:
        """Whether the answer passes.

        Raises:
            Undecided: nobody can say.
        """

    def check_row(
        self, prompt: str | list[dict[str, Any]], chosen: str, answer: str, row: Mapping[str, Any]
    ) -> bool:
        """Check that an answer to a row can pass.

        Returns:
            Whether the chosen answer passes; True for a verifier that needs the right one.

        Raises:
            ValueError: the right answer is missing, or does not pass.
        """
        if not self.needs_answer:
            return self.passes(Generated(prompt, chosen, answer, row))
        if not answer:
            raise ValueError("needs an 'answer' in every row; there is none")
        if not self.passes(Generated(prompt, answer, answer, row)):
            raise ValueError(f"can never pass the answer {answer!r:.80}, which is given")
        return True
