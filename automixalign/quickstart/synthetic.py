"""Seeded preference tasks whose right answer can be checked, for the quickstart's tiny model.

Every task maps a short prompt to one right answer (``chosen``) and to a plausible wrong one
(``rejected``). The wrong answers mostly follow a rule of their own (subtract instead of add,
descending instead of ascending, ...), so that a base model trained on both holds two competing
behaviours and preference training has something to decide.

The tasks conflict on purpose. ``arithmetic`` and ``format`` get the same operands, and the right
answer of each is among the wrong ones of the other; ``ordering`` and ``refusal`` get the same
request, which the second must refuse for some topics; ``subtraction``, ``descending`` and
``consonants`` are the mirror images of three others; all share a small model's capacity.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from math import perm
from typing import Any

Sample = tuple[str, str, str]
"""A prompt, its only right answer (chosen) and a wrong one (rejected)."""

FORBIDDEN_TOPICS: tuple[str, ...] = ("bomb", "drug", "hack")
ALLOWED_TOPICS: tuple[str, ...] = ("cake", "game", "tree")

# As many vowels as consonants, or the lower number would mostly be the right one; an odd length, or
# a string could hold the same number of both.
_VOWELS, _CONSONANTS = "ae", "bc"
_COUNTED_LENGTH = 7
_ORDERED_LETTERS = "abcdefghij"
_ORDERED_LENGTH = 4
_SMALLEST, _LARGEST = 1002, 9997  # four digits, also after adding or subtracting an addend
_LARGEST_ADDEND = 2
_SECOND_MISTAKE = 0.15  # share of wrong answers that do not follow the task's main wrong rule


@dataclass(frozen=True)
class SyntheticTask:
    """One task: what it asks for, how many distinct prompts it has, and how to draw a sample."""

    description: str
    prompts: int
    sample: Callable[[random.Random], Sample]


def _operands(rng: random.Random) -> tuple[int, int]:
    return rng.randint(_SMALLEST, _LARGEST), rng.randint(1, _LARGEST_ADDEND)


def _arithmetic(rng: random.Random) -> Sample:
    left, right = _operands(rng)
    wrong = f"[{left},{right}]" if rng.random() < _SECOND_MISTAKE else str(left - right)
    return f"add {left} {right}", str(left + right), wrong


def _format(rng: random.Random) -> Sample:
    left, right = _operands(rng)
    wrong = f"[{left} {right}]" if rng.random() < _SECOND_MISTAKE else str(left + right)
    return f"list {left} {right}", f"[{left},{right}]", wrong


def _letters(rng: random.Random) -> str:
    return "".join(rng.sample(_ORDERED_LETTERS, _ORDERED_LENGTH))


def _ordering(rng: random.Random) -> Sample:
    letters = _letters(rng)
    ascending = "".join(sorted(letters))
    wrong = letters if rng.random() < _SECOND_MISTAKE else ascending[::-1]
    # Letters that are drawn in order leave only the descending answer to be wrong.
    return f"sort {letters}", ascending, ascending[::-1] if wrong == ascending else wrong


def _refusal(rng: random.Random) -> Sample:
    letters = _letters(rng)
    ascending = "".join(sorted(letters))
    if rng.random() < 0.5:
        return f"sort {letters} {rng.choice(FORBIDDEN_TOPICS)}", "no", ascending
    return f"sort {letters} {rng.choice(ALLOWED_TOPICS)}", ascending, "no"


def _subtraction(rng: random.Random) -> Sample:
    left, right = _operands(rng)
    wrong = f"[{left},{right}]" if rng.random() < _SECOND_MISTAKE else str(left + right)
    return f"take {left} {right}", str(left - right), wrong


def _descending(rng: random.Random) -> Sample:
    letters = _letters(rng)
    descending = "".join(sorted(letters, reverse=True))
    wrong = letters if rng.random() < _SECOND_MISTAKE else descending[::-1]
    return f"rank {letters}", descending, descending[::-1] if wrong == descending else wrong


def _consonants(rng: random.Random) -> Sample:
    prompt, right, wrong = _counting(rng)
    letters = prompt.removeprefix("vowels ")
    consonants = _COUNTED_LENGTH - int(right)
    return f"others {letters}", str(consonants), str(_COUNTED_LENGTH - int(wrong))


def _counting(rng: random.Random) -> Sample:
    letters = "".join(rng.choice(_VOWELS + _CONSONANTS) for _ in range(_COUNTED_LENGTH))
    right = sum(letter in _VOWELS for letter in letters)
    wrong = _COUNTED_LENGTH - right
    if rng.random() < _SECOND_MISTAKE:
        wrong = rng.choice([n for n in (right - 1, right + 1) if 0 <= n <= _COUNTED_LENGTH])
    return f"vowels {letters}", str(right), str(wrong)


_OPERAND_PAIRS = (_LARGEST - _SMALLEST + 1) * _LARGEST_ADDEND
_LETTER_STRINGS = perm(len(_ORDERED_LETTERS), _ORDERED_LENGTH)

SYNTHETIC_TASKS: dict[str, SyntheticTask] = {
    "arithmetic": SyntheticTask(
        description="Add one or two to a four-digit number: 'add 3479 2' -> '3481'.",
        prompts=_OPERAND_PAIRS,
        sample=_arithmetic,
    ),
    "format": SyntheticTask(
        description="Put two numbers in a bracketed list: 'list 3479 2' -> '[3479,2]'.",
        prompts=_OPERAND_PAIRS,
        sample=_format,
    ),
    "ordering": SyntheticTask(
        description="Put four letters in ascending order: 'sort dbca' -> 'abcd'.",
        prompts=_LETTER_STRINGS,
        sample=_ordering,
    ),
    "refusal": SyntheticTask(
        description="Sort for an allowed topic and refuse a forbidden one: 'sort dbca hack' -> 'no'.",
        prompts=_LETTER_STRINGS * (len(FORBIDDEN_TOPICS) + len(ALLOWED_TOPICS)),
        sample=_refusal,
    ),
    "counting": SyntheticTask(
        description="Count the vowels in a string: 'vowels ebacbab' -> '3'.",
        prompts=len(_VOWELS + _CONSONANTS) ** _COUNTED_LENGTH,
        sample=_counting,
    ),
    "subtraction": SyntheticTask(
        description="Take one or two from a four-digit number: 'take 3479 2' -> '3477'.",
        prompts=_OPERAND_PAIRS,
        sample=_subtraction,
    ),
    "descending": SyntheticTask(
        description="Put four letters in descending order: 'rank dbca' -> 'dcba'.",
        prompts=_LETTER_STRINGS,
        sample=_descending,
    ),
    "consonants": SyntheticTask(
        description="Count the letters that are no vowels: 'others ebacbab' -> '4'.",
        prompts=len(_VOWELS + _CONSONANTS) ** _COUNTED_LENGTH,
        sample=_consonants,
    ),
}
"""The tasks by name; how hard they are for a tiny model differs, counting being the hardest."""


def generate(name: str, rows: int, seed: int, pool: str = "preferences") -> list[dict[str, Any]]:
    """Draw ``rows`` rows of task ``name`` with distinct prompts.

    The rows are in TRL's conversational preference form (``prompt``, ``chosen`` and ``rejected``
    are lists of messages) with the right answer's text under ``answer``. They depend on the
    arguments alone, and fewer rows are a prefix of more rows. ``pool`` keeps the draws for
    different uses apart (base-model text, preferences, evaluation); two pools are drawn
    independently, so some of their prompts may coincide.

    Raises:
        ValueError: the task is unknown, ``rows`` is negative, or the task has fewer distinct
            prompts than ``rows``.
    """
    if name not in SYNTHETIC_TASKS:
        raise ValueError(f"no synthetic task {name!r}; there are {', '.join(SYNTHETIC_TASKS)}")
    task = SYNTHETIC_TASKS[name]
    if rows < 0:
        raise ValueError(f"rows must not be negative, got {rows}")
    if rows > task.prompts:
        raise ValueError(f"synthetic task {name!r} has {task.prompts} distinct prompts, {rows} were asked for")
    rng = random.Random(f"{seed}:synthetic:{pool}:{name}")
    seen: set[str] = set()
    drawn: list[dict[str, Any]] = []
    while len(drawn) < rows:
        prompt, chosen, rejected = task.sample(rng)
        if prompt in seen:
            continue
        seen.add(prompt)
        drawn.append(
            {
                "prompt": [{"role": "user", "content": prompt}],
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
                "answer": chosen,
            }
        )
    return drawn
