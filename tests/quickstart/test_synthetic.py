"""The synthetic tasks: seeded, distinct, and right by rules that are written here a second time."""

from collections.abc import Callable

import pytest

from automixalign.quickstart.synthetic import SYNTHETIC_TASKS, generate

NAMES = sorted(SYNTHETIC_TASKS)
FORBIDDEN, ALLOWED = {"bomb", "drug", "hack"}, {"cake", "game", "tree"}


def refuse_or_sort(letters: str, topic: str) -> str:
    assert topic in FORBIDDEN | ALLOWED
    return "no" if topic in FORBIDDEN else "".join(sorted(letters))


RULES: dict[str, tuple[str, Callable[..., object]]] = {
    "arithmetic": ("add", lambda left, right: int(left) + int(right)),
    "format": ("list", lambda left, right: f"[{left},{right}]"),
    "ordering": ("sort", lambda letters: "".join(sorted(letters))),
    "refusal": ("sort", refuse_or_sort),
    "counting": ("vowels", lambda letters: sum(letters.count(vowel) for vowel in "aeiou")),
    "subtraction": ("take", lambda left, right: int(left) - int(right)),
    "descending": ("rank", lambda letters: "".join(sorted(letters))[::-1]),
    "consonants": ("others", lambda letters: sum(letters.count(letter) for letter in "bc")),
}
"""Task -> the verb of its prompts and the right answer to the other words."""


def right_answer(name: str, prompt: str) -> str:
    verb, *words = prompt.split(" ")
    assert verb == RULES[name][0]
    return str(RULES[name][1](*words))


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_distinct_right_and_in_preference_form(name: str) -> None:
    rows = generate(name, 2000, seed=3)
    assert len({row["prompt"][0]["content"] for row in rows}) == len(rows) == 2000
    for row in rows:
        assert set(row) == {"prompt", "chosen", "rejected", "answer"}
        (user,), (chosen,), (rejected,) = row["prompt"], row["chosen"], row["rejected"]
        assert (user["role"], chosen["role"], rejected["role"]) == ("user", "assistant", "assistant")
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
    assert {name: task.prompts for name, task in SYNTHETIC_TASKS.items()} == {
        **dict.fromkeys(("arithmetic", "format", "subtraction"), operands),
        **dict.fromkeys(("ordering", "descending"), 5040),
        **dict.fromkeys(("counting", "consonants"), 4**7),
        "refusal": 5040 * 6,
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


@pytest.mark.parametrize(
    ("name", "other", "verb"), [("arithmetic", "format", "list"), ("format", "arithmetic", "add")]
)
def test_arithmetic_and_format_reject_each_others_answer(name: str, other: str, verb: str) -> None:
    for row in generate(name, 500, seed=0):
        operands = row["prompt"][0]["content"].split(" ", 1)[1]
        if row["rejected"][0]["content"] == right_answer(other, f"{verb} {operands}"):
            return
    pytest.fail(f"no row of {name} rejects the answer of {other}")
