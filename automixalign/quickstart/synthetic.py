"""Generate preference tasks whose right answer is known, for the quickstart's tiny model.

A row has a short prompt, one right answer (`chosen`) and one plausible wrong answer (`rejected`). Most wrong
answers follow a rule of their own, such as subtracting instead of adding. A base model that has learned both
then has two competing behaviours, and preference training decides between them.

The tasks conflict on purpose:
- `arithmetic` and `format` share their operands, and each task's right answer is among the other's wrong ones;
- `ordering` and `refusal` share a request, which `refusal` must refuse for some topics;
- `subtraction`, `descending` and `consonants` mirror three other tasks.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from math import perm
from typing import Any

Sample = tuple[str, str, str]
"""A prompt, its only right answer (chosen) and a wrong one (rejected)."""

FORBIDDEN_TOPICS: tuple[str, ...] = ("bomb", "drug", "hack")
ALLOWED_TOPICS: tuple[str, ...] = ("cake", "game", "tree")

# With fewer vowels than consonants, the lower number would mostly be right. With an even length, a string could
# have as many vowels as consonants.
_VOWELS, _CONSONANTS = "ae", "bc"
_COUNTED_LENGTH = 7
_ORDERED_LETTERS = "abcdefghij"
_ORDERED_LENGTH = 4
_SMALLEST, _LARGEST = 1002, 9997  # four digits, also after adding or subtracting
_LARGEST_ADDEND = 2
_SECOND_MISTAKE = 0.15  # share of wrong answers that do not follow the main wrong rule


@dataclass(frozen=True)
class SyntheticTask:
    """One task."""

    prompts: int
    """The number of distinct prompts."""
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
    # If the letters are drawn in ascending order, only the descending answer is wrong.
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
_COUNTED_STRINGS = len(_VOWELS + _CONSONANTS) ** _COUNTED_LENGTH
_LETTER_STRINGS = perm(len(_ORDERED_LETTERS), _ORDERED_LENGTH)

SYNTHETIC_TASKS = {
    # Add one or two to a four-digit number: 'add 3479 2' -> '3481'.
    "arithmetic": SyntheticTask(_OPERAND_PAIRS, _arithmetic),
    # Put two numbers in a bracketed list: 'list 3479 2' -> '[3479,2]'.
    "format": SyntheticTask(_OPERAND_PAIRS, _format),
    # Put four letters in ascending order: 'sort dbca' -> 'abcd'.
    "ordering": SyntheticTask(_LETTER_STRINGS, _ordering),
    # Sort for an allowed topic and refuse a forbidden one: 'sort dbca hack' -> 'no'.
    "refusal": SyntheticTask(_LETTER_STRINGS * len(FORBIDDEN_TOPICS + ALLOWED_TOPICS), _refusal),
    # Count the vowels in a string: 'vowels ebacbab' -> '3'.
    "counting": SyntheticTask(_COUNTED_STRINGS, _counting),
    # Subtract one or two from a four-digit number: 'take 3479 2' -> '3477'.
    "subtraction": SyntheticTask(_OPERAND_PAIRS, _subtraction),
    # Put four letters in descending order: 'rank dbca' -> 'dcba'.
    "descending": SyntheticTask(_LETTER_STRINGS, _descending),
    # Count the letters that are no vowels: 'others ebacbab' -> '4'.
    "consonants": SyntheticTask(_COUNTED_STRINGS, _consonants),
}
"""The tasks by name. They differ in difficulty; counting is the hardest for a tiny model."""


def generate(name: str, rows: int, seed: int, pool: str = "preferences") -> list[dict[str, Any]]:
    """Draw rows with distinct prompts; fewer rows are a prefix of more rows.

    Args:
        name: the task.
        rows: the number of rows.
        seed: the experiment's seed.
        pool: separates the draws for different uses (base model, preferences). Two pools are drawn
            independently and may share prompts.

    Returns:
        Rows in TRL's conversational form: `prompt`, `chosen` and `rejected` are lists of messages, `answer` is
        the text of the right answer.

    Raises:
        ValueError: the task is unknown, or `rows` is negative or more than its distinct prompts.
    """
    if name not in SYNTHETIC_TASKS:
        raise ValueError(f"no synthetic task {name!r}; there are {', '.join(SYNTHETIC_TASKS)}")
    task = SYNTHETIC_TASKS[name]
    if rows < 0:
        raise ValueError(f"rows must not be negative, got {rows}")
    if rows > task.prompts:
        raise ValueError(f"synthetic task {name!r} has {task.prompts} distinct prompts, {rows} were requested")
    rng = random.Random(f"{seed}:synthetic:{pool}:{name}")
    samples: dict[str, Sample] = {}
    while len(samples) < rows:
        sample = task.sample(rng)
        samples.setdefault(sample[0], sample)
    return [
        {
            "prompt": [{"role": "user", "content": prompt}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
            "answer": chosen,
        }
        for prompt, chosen, rejected in samples.values()
    ]
