"""Problems of the package reasoning-gym, with its own scorers, for a small character-level model.

https://github.com/open-thought/reasoning-gym (Apache-2.0). A pair's chosen answer is right; the rejected
one is near it (see `_wrong`). The base model has seen other problems of the same families with either kind of
answer as often: it can find the right one, and does so no more often than a plausible wrong one.
"""

import json
import random
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from automixalign.scoring.verifiers import registry
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
"""Family -> training pairs, and what its problems are limited to so that so small a model can learn them."""
HELD_OUT = 500
"""Pairs of each family for validation and test."""
BASE_ROWS = 2000
_STREAM = 30_000
"""Problems to draw from for one seed."""
_SECOND_MISTAKE = 0.15
_MOST = 0.4
"""No answer makes up more of a family: knowing how frequent answers are is to be of no use."""
_COUNTS = (1, 2, 3, 4)
"""What is plausible as a small number."""
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
"""Tokens, of which each character is one."""
LONGEST_ANSWER = 16
"""Tokens of three numbers in a list, with the one that ends them."""
PREFIX = "reasoning-gym:"


def register() -> dict[str, str]:
    """Make the package's scorers verifiers of the library; family -> verifier."""
    for family in FAMILIES:
        registry.register(PREFIX + family)(_scorer(family))
    return {family: PREFIX + family for family in FAMILIES}


def pairs(seed: int) -> dict[str, list[dict[str, Any]]]:
    """Of each family, in TRL's conversational form; `answer` is what the scorer needs, as JSON."""
    return {
        family: [_row(family, problem, seed) for problem in islice(_problems(family, seed), size + HELD_OUT)]
        for family, (size, _) in FAMILIES.items()
    }


def write_pairs(folder: Path, rows: dict[str, list[dict[str, Any]]]) -> None:
    """`FAMILY.jsonl` for each."""
    folder.mkdir(parents=True, exist_ok=True)
    for family, some in rows.items():
        files.write_jsonl(folder / f"{family}.jsonl", some)


def base_texts(seed: int) -> list[list[dict[str, str]]]:
    """What the model that every policy of a seed starts from is trained on: no problem of the pairs."""
    texts = []
    for family, (size, _) in FAMILIES.items():
        problems = islice(_problems(family, seed), size + HELD_OUT, None)
        draw = random.Random(f"{seed}:reasoning:base:{family}")
        for _ in range(BASE_ROWS):
            row = _row(family, next(problems), seed)
            texts.append([*row["prompt"], *row["chosen" if draw.random() < _RIGHT_ANSWERS else "rejected"]])
    return texts


def _dataset(family: str, seed: int, size: int) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(family, seed=seed, size=size, **FAMILIES[family][1])


def _problems(family: str, seed: int) -> Iterator[Problem]:
    """Distinct problems whose right and plausible wrong answer differ, and no answer more than often."""
    # The package makes problem i of a seed from the number seed + i: seeds that lie closer than a stream is
    # long would have most of their problems in common.
    seen: set[str] = set()
    answers: Counter[str] = Counter()
    for entry in _dataset(family, _STREAM * seed, _STREAM):
        word, answer = entry["metadata"].get("word", ""), str(entry["answer"])
        if entry["question"] in seen or (word and word.lower() == word[::-1].lower()):
            continue
        if answers[answer] <= _MOST * answers.total():
            seen.add(entry["question"])
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
        kept = [number in metadata["result"] for number in numbers]
        place = draw.randrange(len(numbers))
        kept[place] = not kept[place]
        return str([number for number, keep in zip(numbers, kept, strict=True) if keep])
    if family == "chain_sum":  # one too many is more than so small a model can tell from right
        return str(int(answer) + draw.choice([-1, 1]) * draw.randint(3, 15))
    return str(draw.choice([count for count in _COUNTS if count != int(answer)]))


def _scorer(family: str) -> Any:
    dataset = _dataset(family, 0, 1)

    def passes(output: str, answer: str) -> bool:
        return bool(dataset.score_answer(output.strip(), json.loads(answer)) == 1.0)

    return passes
