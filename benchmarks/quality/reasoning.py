"""Makes preference pairs from problems of the package reasoning-gym, and verifies answers with its scorers.

https://github.com/open-thought/reasoning-gym (Apache-2.0). The chosen answer of a pair is right, the rejected
one is a near miss (`_wrong`). The base model learns from other problems of the same families, with right and
wrong answers equally often: it can produce the right answer, and does not prefer it.
"""

import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from automixalign.scoring.verifiers import registry
from automixalign.scoring.verifiers.verifier import Generated, Verifier
from automixalign.storage import files

Problem = dict[str, Any]
"""An entry of reasoning-gym: `question`, `answer`, `metadata`."""

FAMILIES: dict[str, tuple[int, dict[str, Any]]] = {
    "spell_backward": (2000, {"min_word_len": 3, "max_word_len": 4}),
    "number_filtering": (
        1000,
        {"min_numbers": 3, "max_numbers": 3, "min_value": 0, "max_value": 9, "max_decimals": 0},
    ),
    "chain_sum": (500, {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1}),
    "letter_counting": (500, {"min_words": 2, "max_words": 3}),
    "gcd": (250, {"min_numbers": 2, "max_numbers": 2, "min_value": 2, "max_value": 99}),
}
"""Family -> number of training pairs, and options that keep its problems learnable by a tiny model."""
HELD_OUT = 500
"""Number of pairs of each family for validation and test."""
BASE_ROWS = 2000
_STREAM = 30_000
"""Number of problems that one seed draws from."""
_SECOND_MISTAKE = 0.15
_MAX_ANSWER_SHARE = 0.4
"""No answer makes up more of a family, so that the frequencies of answers are of little use."""
_PLAUSIBLE_COUNTS = (1, 2, 3, 4)
_RIGHT_ANSWERS = 0.5
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "layers": 3,
    "heads": 4,
    "steps": 900,
    "batch_size": 32,
    "learning_rate": 3e-3,
}
MAX_LENGTH = 160
"""In tokens; a character is a token."""
MAX_ANSWER_TOKENS = 16
"""A list of three numbers and the end token."""
PREFIX = "reasoning-gym:"


def register() -> dict[str, str]:
    """Register the package's scorers as verifiers of the library; returns family -> verifier."""
    for family in FAMILIES:
        registry.register(PREFIX + family)(_scorer(family))
    return {family: PREFIX + family for family in FAMILIES}


def pairs(seed: int) -> dict[str, list[dict[str, Any]]]:
    """The rows of each family in TRL's conversational format; `answer` holds the scorer's input as JSON."""
    return {
        family: [
            _row(family, problem, seed)
            for problem in itertools.islice(_problems(family, seed), size + HELD_OUT)
        ]
        for family, (size, _) in FAMILIES.items()
    }


def write_pairs(folder: Path, rows: dict[str, list[dict[str, Any]]]) -> None:
    """Write `FAMILY.jsonl` for each family."""
    folder.mkdir(parents=True, exist_ok=True)
    for family, pairs_of_family in rows.items():
        files.write_jsonl(folder / f"{family}.jsonl", pairs_of_family)


def base_texts(seed: int) -> list[list[dict[str, str]]]:
    """The conversations that the base model of a seed learns from: other problems than the pairs."""
    texts = []
    for family, (size, _) in FAMILIES.items():
        problems = itertools.islice(_problems(family, seed), size + HELD_OUT, None)
        draw = random.Random(f"{seed}:reasoning:base:{family}")
        for _ in range(BASE_ROWS):
            row = _row(family, next(problems), seed)
            texts.append([*row["prompt"], *row["chosen" if draw.random() < _RIGHT_ANSWERS else "rejected"]])
    return texts


def _dataset(family: str, seed: int, size: int) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(family, seed=seed, size=size, **FAMILIES[family][1])


def _problems(family: str, seed: int) -> Iterator[Problem]:
    """Distinct problems whose answers are not too frequent and differ from the plausible wrong ones."""
    # The package makes problem i of a seed from the number seed + i. Seeds must be a stream apart, or most of
    # their problems would be the same.
    questions: set[str] = set()
    answers: Counter[str] = Counter()
    for entry in _dataset(family, _STREAM * seed, _STREAM):
        word, answer = entry["metadata"].get("word", ""), str(entry["answer"])
        if entry["question"] in questions or (word and word.lower() == word[::-1].lower()):
            continue
        if answers[answer] <= _MAX_ANSWER_SHARE * answers.total():
            questions.add(entry["question"])
            answers[answer] += 1
            yield entry


def _row(family: str, problem: Problem, seed: int) -> dict[str, Any]:
    draw = random.Random(f"{seed}:reasoning:wrong:{problem['question']}")
    entry = {key: problem[key] for key in ("question", "answer", "metadata")}
    return {
        "prompt": [{"role": "user", "content": problem["question"]}],
        "chosen": [{"role": "assistant", "content": str(problem["answer"])}],
        "rejected": [{"role": "assistant", "content": _wrong(family, problem, draw)}],
        "answer": json.dumps(entry),
    }


def _wrong(family: str, problem: Problem, draw: random.Random) -> str:
    answer, metadata = str(problem["answer"]), problem["metadata"]
    if family == "spell_backward":
        word: str = metadata["word"]
        return word if draw.random() >= _SECOND_MISTAKE else answer[1:] + answer[0]
    if family == "number_filtering":  # one number too many or too few
        numbers = metadata["original_numbers"]
        selected = [number in metadata["result"] for number in numbers]
        index = draw.randrange(len(numbers))
        selected[index] = not selected[index]
        return str(list(itertools.compress(numbers, selected)))
    if family == "chain_sum":  # a tiny model cannot tell a sum that is off by one from the right one
        return str(int(answer) + draw.choice([-1, 1]) * draw.randint(3, 15))
    return str(draw.choice([count for count in _PLAUSIBLE_COUNTS if count != int(answer)]))


def _scorer(family: str) -> type[Verifier]:
    dataset = _dataset(family, 0, 1)

    class Scorer(Verifier):
        def passes(self, generated: Generated) -> bool:
            return bool(dataset.score_answer(generated.output.strip(), json.loads(generated.answer)) == 1.0)

    return Scorer
