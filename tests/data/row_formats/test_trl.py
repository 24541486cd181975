"""TRL's format: guessed prompts, and advice for rows of other layouts."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automixalign.data.pairs import text_of
from automixalign.data.row_formats.row_format import DroppedRow
from tests.data.rows import Data, assistant, conversation, parsed, plain, system, user


def test_a_guessed_prompt_is_what_the_sides_begin_with() -> None:
    start = [system("s"), user("one"), assistant("two"), user("three")]
    pair = parsed({"chosen": [*start, assistant("yes")], "rejected": [*start, assistant("no")]})
    assert (pair.prompt, pair.chosen, pair.rejected) == (start, [assistant("yes")], [assistant("no")])
    assert pair.derived
    assert pair.pair_id == parsed({"prompt": start, "chosen": pair.chosen, "rejected": pair.rejected}).pair_id


def test_sides_keep_equal_messages_after_their_first_difference() -> None:
    chosen = [user("q"), assistant("a"), user("more"), assistant("end")]
    rejected = [user("q"), assistant("b"), user("more"), assistant("end")]
    pair = parsed({"chosen": chosen, "rejected": rejected})
    assert (pair.prompt, pair.chosen, pair.rejected) == (chosen[:1], chosen[1:], rejected[1:])


def test_a_guessed_prompt_ends_before_an_answer_that_both_sides_share() -> None:
    chosen = [user("q"), assistant("a"), user("x"), assistant("end")]
    rejected = [user("q"), assistant("a"), user("y"), assistant("end")]
    assert parsed({"chosen": chosen, "rejected": rejected}).prompt == [user("q")]


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
def test_a_guessed_prompt_of_texts_ends_at_a_blank(chosen: str, rejected: str, prompt: str) -> None:
    pair = parsed({"chosen": chosen, "rejected": rejected})
    assert (pair.prompt, f"{prompt}{pair.chosen}", f"{prompt}{pair.rejected}") == (prompt, chosen, rejected)


@given(st.text("ab \n", max_size=12), st.text("ab \n", max_size=6), st.text("ab \n", max_size=6))
def test_a_guessed_prompt_leaves_text_to_both_sides(start: str, left: str, right: str) -> None:
    try:
        pair = parsed({"chosen": start + left, "rejected": start + right})
    except (ValueError, DroppedRow):
        return
    assert isinstance(pair.prompt, str)
    assert (pair.prompt + str(pair.chosen), pair.prompt + str(pair.rejected)) == (start + left, start + right)
    assert pair.prompt.strip()
    if start + left != start + right:
        assert text_of(pair.chosen).strip()
        assert text_of(pair.rejected).strip()


SIDES = {"chosen": "The sky is blue", "rejected": "The sky is green"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**SIDES, "question": "sky?"}, "the column 'question' would be lost; set 'format: orca'"),
        ({**SIDES, "question": "sky?", "system": "s"}, "'question' would be lost; set 'format: orca'"),
        ({**SIDES, "system": "s", "input": "sky?"}, "'input' would be lost; set 'format: orca'"),
        ({**SIDES, "instruction": "sky?"}, "'instruction' would be lost; set 'format: alpaca'"),
        ({**SIDES, "context": "sky?"}, "'context' would be lost; set the 'format'"),
        ({**SIDES, "query": "sky?"}, "'query' would be lost; set the 'format' that reads it, or map 'columns'"),
        (
            {
                "instruction": "q",
                "chosen": [user("q"), assistant("a")],
                "rejected": [user("q"), assistant("b")],
            },
            "'instruction' would be lost; set 'format: ultrafeedback'",
        ),
        ({**SIDES, "conversations": []}, "'conversations' would be lost; set 'format: sharegpt'"),
        ({**SIDES, "prompt": "sky?", "system": "s"}, "'system' beside the 'prompt' .*'format: chat'"),
        (conversation("q", "yes", "no", system_prompt="s"), "'system_prompt' beside .*'format: chat'"),
        ({**SIDES, "system_message": "s"}, "the column 'system_message' would be lost"),
        (
            {"prompt": "q", "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
            "is text, and both sides are messages; set 'format: ultrafeedback'",
        ),
        (
            {
                "prompt": [user("q")],
                "chosen": [user("q"), assistant("a")],
                "rejected": [user("q"), assistant("b")],
            },
            "'chosen' must begin and end with an assistant message; .*'format: ultrafeedback'",
        ),
        ({**SIDES, "prompt": [user("q")]}, "must be text if a side is text; set 'format: chat'"),
        (
            {"chosen": "\n\nHuman: q\n\nAssistant: a b", "rejected": "\n\nHuman: q\n\nAssistant: a c"},
            "the text is a dialogue; set 'format: hh-rlhf'",
        ),
        ({"prompt": "q", "response_0": "a", "response_1": "b"}, "set 'format: pku-saferlhf'"),
        ({"context": [], "response1": "a", "response2": "b"}, "set 'format: helpsteer3'"),
        ({"prompt": "q", "response_1": "a", "response_2": "b"}, "set 'format: helpsteer3'"),
        ({"input": "q", "generations": ["a"], "ratings": [1]}, "set 'format: ratings'"),
        ({"instruction": "q", "completions": []}, "set 'format: ratings'"),
        ({"prompt": "q", "answers": []}, "set 'format: ratings'"),
        ({"instruction": "q", "output": ["a", "b"]}, "set 'format: alpaca'"),
        ({"text": "q"}, "the field 'chosen' is missing; the row has: text; set the 'format'"),
    ],
)
def test_rows_of_other_layouts_are_refused_with_the_format_to_set(row: Data, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parsed(row)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**SIDES, "prompt": None}, "the field 'prompt' is null"),
        ({"prompt": "q", "chosen": "a", "rejected": None}, "the field 'rejected' is null"),
        ({"chosen": "  yes", "rejected": "  no"}, "the two sides do not begin alike"),
        ({"chosen": "yes", "rejected": "no"}, "there is no 'prompt', and the two sides do not begin alike"),
        ({"chosen": "yes", "rejected": [assistant("no")]}, "must both be text or both messages"),
    ],
)
def test_rows_without_what_trl_needs_are_refused(row: Data, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parsed(row)


@pytest.mark.parametrize("more", [{"system": None}, {"question": "?"}, {"messages": []}, {"images": []}])
def test_other_columns_beside_a_prompt_are_ignored(more: dict[str, Any]) -> None:
    assert parsed(conversation("q", "yes", "no") | more) == parsed(conversation("q", "yes", "no"))


def test_a_system_column_that_repeats_the_message_is_ignored() -> None:
    row = {**conversation("q", "yes", "no"), "prompt": [system("s"), user("q")]}
    assert parsed(row | {"system": "s"}) == parsed(row)


def test_an_empty_column_beside_sides_without_a_prompt_is_ignored() -> None:
    assert parsed(SIDES | {"system": None, "input": ""}) == parsed(SIDES)


def test_an_empty_system_column_beside_a_text_prompt_is_ignored() -> None:
    assert parsed(plain("q", "yes", "no", system="")).prompt == "q"
