"""The synthetic tasks: seeded, distinct, and right by rules written out again here."""

from __future__ import annotations

import pytest

from automixalign.quickstart.synthetic import SYNTHETIC_TASKS, generate

NAMES = sorted(SYNTHETIC_TASKS)


def right_answer(name: str, prompt: str) -> str:  # noqa: PLR0911  one rule a task
    """Return the right answer to ``prompt``, computed without the module under test."""
    words = prompt.split(" ")
    if name == "arithmetic":
        verb, left, right = words
        assert verb == "add"
        return str(int(left) + int(right))
    if name == "format":
        verb, left, right = words
        assert verb == "list"
        return "[" + left + "," + right + "]"
    if name == "ordering":
        verb, letters = words
        assert verb == "sort"
        return "".join(sorted(letters))
    if name == "refusal":
        verb, letters, topic = words
        assert verb == "sort"
        assert topic in {"bomb", "drug", "hack", "cake", "game", "tree"}
        return "no" if topic in {"bomb", "drug", "hack"} else "".join(sorted(letters))
    if name == "counting":
        verb, letters = words
        assert verb == "vowels"
        return str(sum(letters.count(vowel) for vowel in "aeiou"))
    if name == "subtraction":
        verb, left, right = words
        assert verb == "take"
        return str(int(left) - int(right))
    if name == "descending":
        verb, letters = words
        assert verb == "rank"
        return "".join(sorted(letters))[::-1]
    if name == "consonants":
        verb, letters = words
        assert verb == "others"
        return str(sum(letters.count(letter) for letter in "bc"))
    raise AssertionError(f"no rule for task {name}")


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_distinct_right_and_in_preference_form(name: str) -> None:
    rows = generate(name, 2000, seed=3)

    assert len(rows) == 2000
    assert len({row["prompt"][0]["content"] for row in rows}) == 2000
    for row in rows:
        assert set(row) == {"prompt", "chosen", "rejected", "answer"}
        (user,), (chosen,), (rejected,) = row["prompt"], row["chosen"], row["rejected"]
        assert (user["role"], chosen["role"], rejected["role"]) == (
            "user",
            "assistant",
            "assistant",
        )
        assert chosen["content"] == row["answer"] == right_answer(name, user["content"])
        assert rejected["content"] != chosen["content"]
        for answer in (chosen["content"], rejected["content"]):
            assert 1 <= len(answer) <= 8
            assert len(user["content"]) + len(answer) <= 24
            assert (user["content"] + answer).isascii()


@pytest.mark.parametrize("name", NAMES)
def test_rows_depend_on_name_seed_and_pool_alone(name: str) -> None:
    rows = generate(name, 50, seed=1)

    assert rows == generate(name, 50, seed=1, pool="preferences")
    assert rows[:20] == generate(name, 20, seed=1)
    assert rows != generate(name, 50, seed=2)
    assert rows != generate(name, 50, seed=1, pool="base")


@pytest.mark.parametrize("name", NAMES)
def test_more_rows_than_prompts_are_refused_with_the_number(name: str) -> None:
    available = SYNTHETIC_TASKS[name].prompts

    assert available > 4000
    with pytest.raises(ValueError, match=rf"{name}.* {available} distinct"):
        generate(name, available + 1, seed=0)


def test_a_task_can_be_drawn_to_its_last_prompt() -> None:
    available = SYNTHETIC_TASKS["ordering"].prompts

    rows = generate("ordering", available, seed=0)

    assert len({row["prompt"][0]["content"] for row in rows}) == available == 10 * 9 * 8 * 7


def test_the_stated_numbers_of_prompts() -> None:
    operands = (9997 - 1002 + 1) * 2
    stated = {name: task.prompts for name, task in SYNTHETIC_TASKS.items()}

    assert stated == {
        "arithmetic": operands,
        "format": operands,
        "ordering": 5040,
        "refusal": 5040 * 6,
        "counting": 4**7,
        "subtraction": operands,
        "descending": 5040,
        "consonants": 4**7,
    }


@pytest.mark.parametrize(("name", "rows"), [("no-such-task", 1), ("arithmetic", -1)])
def test_arguments_out_of_range_are_refused(name: str, rows: int) -> None:
    with pytest.raises(ValueError, match=r"no-such-task|negative"):
        generate(name, rows, seed=0)


def test_refusal_asks_for_both_answers_about_equally_often() -> None:
    rows = generate("refusal", 1000, seed=0)
    refused = [row for row in rows if row["answer"] == "no"]

    assert 400 < len(refused) < 600
    assert all(row["rejected"][0]["content"] != "no" for row in refused)
    assert all(row["rejected"][0]["content"] == "no" for row in rows if row not in refused)


def test_arithmetic_and_format_reject_each_others_answer() -> None:
    sums = generate("arithmetic", 500, seed=0)
    lists = generate("format", 500, seed=0)

    assert any(row["rejected"][0]["content"] == right_answer("format", _as("list", row)) for row in sums)
    assert any(row["rejected"][0]["content"] == right_answer("arithmetic", _as("add", row)) for row in lists)


def _as(verb: str, row: dict[str, list[dict[str, str]]]) -> str:
    """Return the row's prompt with another verb."""
    return " ".join([verb, *row["prompt"][0]["content"].split(" ")[1:]])
