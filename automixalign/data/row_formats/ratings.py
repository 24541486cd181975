"""Several answers with ratings: distilabel, openbmb/UltraFeedback, berkeley-nest/Nectar."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from automixalign.data.row_formats.registry import register
from automixalign.data.row_formats.row_format import (
    Draw,
    DroppedRow,
    Fields,
    Messages,
    RowFormat,
    messages,
    reply,
)
from automixalign.data.row_formats.shared.beside import SYSTEM, system_of, with_system
from automixalign.data.row_formats.shared.dialogue import is_dialogue, parse_dialogue
from automixalign.data.row_formats.shared.values import as_list, as_number, as_text, describe_value, need_one_of
from automixalign.system.schema import NonNegative, Text

_PROMPTS = ("prompt", "instruction", "input")
_LISTS = ("generations", "completions", "answers")
_SCORES = ("ratings", "scores", "ranks")
_TEXT_KEYS = ("response", "answer", "text", "generation")
_SCORE_KEYS = ("overall_score", "fine-grained_score", "score", "rating", "rank")


class _Rated(NamedTuple):
    score: float
    text: str


@register("ratings")
class Ratings(RowFormat):
    """A prompt, and a list of answers beside a list of ratings; or a list of objects with answer and rating.

    Of `ranks`, and of a key `rank`, the lowest is the best. Answers without a rating are ignored.
    """

    rejected: Literal["worst", "random"] = "worst"
    """Which answer the best is preferred to: the worst, or one of the worse that the seed draws."""
    min_gap: NonNegative = 0
    """The smallest difference between the ratings of a pair."""
    score: Text | None = None
    """The key that holds the rating, where answers are objects. By default the first there is of
    `overall_score`, `fine-grained_score`, `score`, `rating` and `rank`."""

    columns = (*_PROMPTS, *SYSTEM, *_LISTS, *_SCORES, "answer")
    optional = columns

    def read(self, row: Mapping[str, Any], draw: Draw) -> Fields:
        """The best answer, against the worst or one that is drawn."""
        asked = need_one_of(row, _PROMPTS)
        prompt = with_system(_prompt(row[asked], asked), system_of(row))
        rated = self._rated(row)
        if len(rated) < 2:
            raise DroppedRow("unrated")
        best = max(rated, key=lambda answer: answer.score)
        worse = [answer for answer in rated if answer.score < best.score]
        if not worse:
            raise DroppedRow("tie")
        worse = [answer for answer in worse if best.score - answer.score >= self.min_gap]
        if not worse:
            raise DroppedRow("small_gap")
        worst = (
            min(worse, key=lambda answer: answer.score) if self.rejected == "worst" else draw().choice(worse)
        )
        answer = {"answer": row["answer"]} if "answer" in row else {}
        return {"prompt": prompt, "chosen": reply(best.text), "rejected": reply(worst.text), **answer}

    def _rated(self, row: Mapping[str, Any]) -> list[_Rated]:
        name = need_one_of(row, _LISTS)
        answers = as_list(row[name], name)
        if not answers:
            raise DroppedRow("unrated")
        if any(isinstance(answer, dict) for answer in answers):
            answers, scores, sign = self._columns(answers, name)
            rating = name
        else:
            rating = need_one_of(row, _SCORES)
            scores, sign = as_list(row[rating], rating), -1 if rating == "ranks" else 1
            if len(scores) != len(answers):
                raise ValueError(f"{len(answers)} {name!r} have {len(scores)} {rating!r}")
        numbers = [as_number(score, rating) for score in scores]
        return [
            _Rated(sign * number, as_text(answer, name))
            for number, answer in zip(numbers, answers, strict=True)
            if answer is not None and number is not None
        ]

    def _columns(self, answers: list[Any], name: str) -> tuple[list[Any], list[Any], int]:
        """The texts and scores of a list of objects, and -1 if the lowest score is the best."""
        for answer in answers:
            if not isinstance(answer, dict | None):
                raise ValueError(f"{name!r} must be all texts or all objects, not {describe_value(answer)}")
        answers = [answer for answer in answers if answer is not None]
        keys = list(dict.fromkeys(key for answer in answers for key in answer))
        text = next((key for key in _TEXT_KEYS if key in keys), _TEXT_KEYS[0])
        score = self.score or next((key for key in _SCORE_KEYS if key in keys), _SCORE_KEYS[0])
        for key in (text, score):
            if key not in keys:
                raise ValueError(f"{name!r} have no {key!r}; they have: {', '.join(keys):.200}")
        sign = -1 if score == "rank" else 1
        return [answer.get(text) for answer in answers], [answer.get(score) for answer in answers], sign


def _prompt(value: Any, name: str) -> Messages:
    if isinstance(value, str) and not is_dialogue(value):
        return messages(value)
    if isinstance(value, list):
        return value
    turns = parse_dialogue(as_text(value, name))
    if turns[-1] == {"role": "assistant", "content": ""}:  # Nectar's prompts end with `Assistant:`
        del turns[-1]
    return turns
