"""Rows are parsed into pairs with a stable id."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automixalign.data.pairs import text_of
from automixalign.system.errors import DataError
from tests.data.rows import assistant, conversation, parsed, plain, system, user


def test_conversation_with_prompt() -> None:
    pair = parsed(conversation("hi", "yes", "no", answer="yes", other=1))
    assert (pair.prompt, pair.chosen, pair.rejected) == ([user("hi")], [assistant("yes")], [assistant("no")])
    assert pair.answer == "yes"
    assert pair.prompt_key == "user: hi"


def test_conversation_with_the_prompt_in_both_sides() -> None:
    start = [system("s"), user("one"), assistant("two"), user("three")]
    pair = parsed({"chosen": [*start, assistant("yes")], "rejected": [*start, assistant("no")]})
    assert (pair.prompt, pair.chosen, pair.rejected) == (start, [assistant("yes")], [assistant("no")])
    assert pair.pair_id == parsed({"prompt": start, "chosen": pair.chosen, "rejected": pair.rejected}).pair_id


def test_sides_keep_equal_messages_after_their_first_difference() -> None:
    chosen = [user("q"), assistant("a"), user("more"), assistant("end")]
    rejected = [user("q"), assistant("b"), user("more"), assistant("end")]
    pair = parsed({"chosen": chosen, "rejected": rejected})
    assert (pair.prompt, pair.chosen, pair.rejected) == (chosen[:1], chosen[1:], rejected[1:])


def test_extra_keys_of_a_message_are_ignored() -> None:
    row = conversation("hi", "yes", "no")
    row["chosen"][0]["tool_calls"] = None
    assert parsed(row) == parsed(conversation("hi", "yes", "no"))


def test_plain_with_prompt() -> None:
    pair = parsed(plain("2+2=", " 4", " 5"))
    assert (pair.prompt, pair.chosen, pair.rejected, pair.answer) == ("2+2=", " 4", " 5", None)


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("Q: sky? A: blue", "Q: sky? A: black", "Q: sky? A:"),
        ("Q: sky? A: blue", "Q: sky? A: green", "Q: sky? A:"),
        ("say: yes", "say: yes of course", "say:"),
        ("say: yes of course", "say: yes", "say:"),
        ("say: yes ", "say: yes of course", "say:"),
        ("ab", "ab c", "a"),
        ("ab", "ac", "a"),
    ],
)
def test_plain_with_the_prompt_in_both_sides(chosen: str, rejected: str, prompt: str) -> None:
    pair = parsed({"chosen": chosen, "rejected": rejected})
    assert (pair.prompt, f"{prompt}{pair.chosen}", f"{prompt}{pair.rejected}") == (prompt, chosen, rejected)


@given(st.text("ab \n", max_size=12), st.text("ab \n", max_size=6), st.text("ab \n", max_size=6))
def test_an_implicit_prompt_leaves_text_to_both_sides(start: str, left: str, right: str) -> None:
    try:
        pair = parsed({"chosen": start + left, "rejected": start + right})
    except DataError:
        return
    assert isinstance(pair.prompt, str)
    assert (pair.prompt + str(pair.chosen), pair.prompt + str(pair.rejected)) == (start + left, start + right)
    assert pair.prompt.strip()
    if start + left != start + right:
        assert text_of(pair.chosen).strip()
        assert text_of(pair.rejected).strip()


def test_pair_ids_do_not_depend_on_the_run() -> None:
    assert parsed(conversation("hi", "yes", "no")).pair_id == "8fc172aca55cb584"


def test_pair_ids_do_not_depend_on_order_or_other_fields() -> None:
    rows = [conversation(f"prompt {number}", "yes", "no") for number in range(20)]
    ids = [parsed(row).pair_id for row in rows]
    shuffled = random.Random(0).sample(range(20), 20)
    again = [parsed(rows[number] | {"extra": number}).pair_id for number in shuffled]
    assert again == [ids[number] for number in shuffled]
    assert len(set(ids)) == 20


def test_pair_ids_tell_pairs_apart() -> None:
    rows = [
        conversation("a", "b", "c"),
        conversation("a", "c", "b"),
        conversation("a", "b", "d"),
        conversation("A", "b", "c"),
        plain("a", "b", "c"),
        plain("a b", "c", "d"),
        plain("a", "b c", "d"),
        conversation("a", "b", "c") | {"prompt": [system("s"), user("a")]},
    ]
    assert len({parsed(row).pair_id for row in rows}) == len(rows)


def test_prompts_are_equal_apart_from_case_and_blanks() -> None:
    keys = {parsed(plain(prompt, "a", "b")).prompt_key for prompt in ("Say  Hi", "say hi\n", " SAY\thi")}
    assert keys == {"say hi"}
