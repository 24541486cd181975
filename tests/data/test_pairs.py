"""Fields are checked, and become pairs with a stable id."""

import json
import random
from typing import Any

import pytest

from automixalign.data.pairs import Pair, make_pair, sides_are_same, text_of
from automixalign.data.row_formats.row_format import DroppedRow
from tests.data.rows import Data, assistant, conversation, plain, system, user

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
OTHER_CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds."}}


def sides(chosen: Data, rejected: Data, **more: Any) -> Data:
    """Fields with a message of each side."""
    return {"prompt": [user("hi")], "chosen": [chosen], "rejected": [rejected], **more}


def calling(*calls: Data, **more: Any) -> Data:
    return {"role": "assistant", "tool_calls": list(calls), **more}


def test_messages() -> None:
    pair = make_pair(conversation("hi", "yes", "no", answer="yes"))
    assert (pair.prompt, pair.chosen, pair.rejected) == ([user("hi")], [assistant("yes")], [assistant("no")])
    assert (pair.answer, pair.options, pair.derived) == ("yes", None, False)


def test_plain_text() -> None:
    pair = make_pair(plain("2+2=", " 4", " 5"))
    assert (pair.prompt, pair.chosen, pair.rejected, pair.answer) == ("2+2=", " 4", " 5", None)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "a", "reasoning_content": "b"},
        calling(CALL),
        calling(CALL, content=""),
        {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "a", "name": "bot"},
        {"role": "assistant", "content": "a backslash and u0000: \\u0000", "name": "bot"},
    ],
)
def test_whatever_a_chat_template_reads_reaches_it(message: Data) -> None:
    assert make_pair(sides(message, assistant("no"))).chosen == [message]


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        (assistant("a") | {"tool_calls": None, "name": None}, assistant("a")),
        (assistant("a") | {"tool_calls": []}, assistant("a")),
        (calling(CALL, content=None), calling(CALL)),
    ],
)
def test_nulls_of_tables_are_removed_from_messages(message: Data, kept: Data) -> None:
    assert make_pair(sides(message, assistant("no"))) == make_pair(sides(kept, assistant("no")))


@pytest.mark.parametrize("answer", [None, "", " "])
def test_a_row_may_have_no_answer(answer: str | None) -> None:
    assert make_pair(conversation("q", "yes", "no", answer=answer)).answer is None


@pytest.mark.parametrize(
    "prompt", [[system(""), user("q")], [{"role": "developer", "content": "d"}, user("q")]]
)
def test_prompts_may_hold_other_roles_and_empty_system_messages(prompt: list[Data]) -> None:
    assert make_pair(conversation("q", "yes", "no") | {"prompt": prompt}).prompt == prompt


def test_a_prompt_may_end_with_what_a_tool_returned() -> None:
    prompt = [user("q"), calling(CALL), {"role": "tool", "content": ""}]
    assert make_pair(conversation("q", "yes", "no") | {"prompt": prompt}).prompt == prompt


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL])])
def test_tools_may_be_json_text(tools: Any) -> None:
    assert make_pair(conversation("q", "yes", "no", tools=tools)).options == {"tools": [TOOL]}


@pytest.mark.parametrize("tools", [None, "", "null"])
def test_no_tools_are_no_options(tools: Any) -> None:
    assert make_pair(conversation("q", "yes", "no", tools=tools, chat_template_kwargs={})).options is None


def test_arguments_of_the_chat_template_are_options() -> None:
    pair = make_pair(conversation("q", "yes", "no", chat_template_kwargs={"enable_thinking": False}))
    assert pair.options == {"chat_template_kwargs": {"enable_thinking": False}}


@pytest.mark.parametrize(
    "fields",
    [
        plain("q", " ", "no"),
        plain("", "yes", "no"),
        conversation("q", "yes", "\n"),
        conversation(" ", "yes", "no"),
        sides({"role": "assistant", "content": [{"type": "text", "text": " "}]}, assistant("no")),
        sides({"role": "assistant", "content": "", "reasoning_content": "hm"}, assistant("no")),
    ],
)
def test_empty_turns_are_dropped(fields: Data) -> None:
    with pytest.raises(DroppedRow, match=r"^empty$"):
        make_pair(fields)


IMAGE = {"role": "user", "content": [{"type": "image", "url": "a.png"}]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"chosen": "a", "rejected": "b"}, "the field 'prompt' is missing"),
        (plain("q", "a", "b") | {"chosen": 4}, "'chosen' must be text or a list of messages, not 4"),
        (plain("q", "a", "b") | {"chosen": []}, "'chosen' must be .*, not an empty list"),
        (conversation("q", "a", "b") | {"prompt": "q"}, "must all be text or all messages"),
        (conversation("q", "a", "b") | {"prompt": [system("s")]}, "'prompt' holds no user message"),
        (conversation("q", "a", "b") | {"prompt": [user("q"), assistant("a")]}, "'prompt' must end before"),
        (conversation("q", "a", "b") | {"chosen": [user("a")]}, "'chosen' must begin and end with an assist"),
        (conversation("q", "a", "b") | {"prompt": [IMAGE]}, r"prompt\[0\] has a content part of type 'image'"),
        (conversation("q", "a", "b") | {"prompt": ["q"]}, r"prompt\[0\] must be an object with 'role'"),
        (sides({"role": "assistant"}, assistant("b")), r"chosen\[0\] must be an object with 'role'"),
        (sides({"role": "assistant", "content": 4}, assistant("b")), r"content of chosen\[0\] must be text"),
        (
            sides(calling() | {"tool_calls": "add(1)"}, assistant("b")),
            r"tool_calls of chosen\[0\] must be a list",
        ),
        (
            sides(calling(CALL | {"x": {1}}), assistant("b")),
            r"chosen\[0\] holds a value that JSON does not allow",
        ),
        (
            sides(calling(CALL | {"x": float("nan")}), assistant("b")),
            r"chosen\[0\] holds a value that JSON does not allow",
        ),
        (plain("q", "a\0", "b"), "'chosen' holds a NUL"),
        (conversation("q", "a", "b\0"), r"rejected\[0\] holds a NUL"),
        (sides(calling(CALL, name="a\0"), assistant("b")), r"chosen\[0\] holds a NUL"),
        (plain("q", "a", "b\ud800"), "'rejected' holds half a surrogate pair"),
        (conversation("q\udfff", "a", "b"), "'prompt' holds half a surrogate pair"),
        (conversation("q", "a", "b", answer="\ud800"), "'answer' holds half a surrogate pair"),
        (conversation("q", "a", "b", answer=4), "'answer' must be text, not int"),
        (conversation("q", "a", "b", tools="add"), "'tools' is not JSON"),
        (conversation("q", "a", "b", tools={"add": 1}), "'tools' must be a list of objects"),
        (conversation("q", "a", "b", tools=["add"]), "'tools' must be a list of objects"),
        (conversation("q", "a", "b", chat_template_kwargs="x"), "'chat_template_kwargs' must be an object"),
        (plain("q", "a", "b", tools=[TOOL]), "'tools' is for a chat template, and this row is plain text"),
    ],
)
def test_fields_that_are_no_preference_are_refused_by_name(fields: Data, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_pair(fields)


def test_pair_ids_do_not_depend_on_the_run() -> None:
    assert make_pair(conversation("hi", "yes", "no")).pair_id == "fae4e39b74c2ad00"


def test_pair_ids_do_not_depend_on_order_or_other_fields() -> None:
    rows = [conversation(f"prompt {number}", "yes", "no") for number in range(20)]
    ids = [make_pair(row).pair_id for row in rows]
    shuffled = random.Random(0).sample(range(20), 20)
    again = [make_pair(rows[number] | {"extra": number}).pair_id for number in shuffled]
    assert again == [ids[number] for number in shuffled]
    assert len(set(ids)) == 20


def test_pair_ids_do_not_depend_on_the_order_of_keys() -> None:
    backwards = {"content": "yes", "role": "assistant"}
    assert make_pair(sides(backwards, assistant("no"))) == make_pair(sides(assistant("yes"), assistant("no")))


def test_pair_ids_tell_pairs_apart() -> None:
    rows = [
        conversation("a", "b", "c"),
        conversation("a", "c", "b"),
        conversation("a", "b", "d"),
        conversation("A", "b", "c"),
        conversation("a", "b", "c", tools=[TOOL]),
        conversation("a", "b", "c", chat_template_kwargs={"enable_thinking": False}),
        plain("a", "b", "c"),
        plain("a b", "c", "d"),
        plain("a", "b c", "d"),
        conversation("a", "b", "c") | {"prompt": [system("s"), user("a")]},
        conversation("a", "b", "c") | {"chosen": [calling(CALL, content="b")]},
        conversation("a", "b", "c") | {"chosen": [calling(OTHER_CALL, content="b")]},
        conversation("a", "b", "c") | {"chosen": [assistant("b") | {"reasoning_content": "r"}]},
    ]
    assert len({make_pair(row).pair_id for row in rows}) == len(rows)


def test_prompts_are_equal_apart_from_case_and_blanks() -> None:
    keys = {make_pair(plain(prompt, "a", "b")).prompt_key for prompt in ("Say  Hi", "say hi\n", " SAY\thi")}
    assert keys == {"say hi"}


def test_a_prompt_with_other_tools_belongs_in_the_same_split() -> None:
    with_tools = make_pair(conversation("hi", "yes", "no", tools=[TOOL]))
    assert with_tools.prompt_key == make_pair(conversation("hi", "yes", "no")).prompt_key


@pytest.mark.parametrize(
    ("chosen", "rejected", "same"),
    [
        (assistant("a"), assistant(" a\n"), True),
        (assistant("a"), assistant("b"), False),
        (calling(CALL, content="a"), calling(CALL, content="a "), True),
        (calling(CALL), calling(CALL, content=""), True),
        (calling(CALL), calling(OTHER_CALL), False),
        (calling(CALL, content="a"), assistant("a"), False),
        (assistant("a"), assistant("a") | {"reasoning_content": "r"}, False),
        (assistant("a"), {"role": "assistant", "content": [{"type": "text", "text": "a"}]}, True),
    ],
)
def test_sides_are_the_same_if_only_blanks_differ(chosen: Data, rejected: Data, same: bool) -> None:
    assert sides_are_same(make_pair(sides(chosen, rejected))) is same


def test_text_of_messages_names_roles() -> None:
    pair: Pair = make_pair(conversation("hi", "yes", "no"))
    assert text_of([*pair.prompt, *pair.chosen]) == "user: hi\nassistant: yes"


@pytest.mark.parametrize("tools", [[], "[]"])
def test_an_empty_list_of_tools_reaches_the_template_as_in_trl(tools: Any) -> None:
    assert make_pair(conversation("p", "a", "b", tools=tools)).options == {"tools": []}
    assert make_pair(plain("p", "a", "b", tools=tools)).options is None
