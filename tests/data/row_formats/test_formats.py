"""Row formats: public layouts of preference data become prompt, chosen and rejected."""

import contextlib
import json
import random
from typing import Any, NamedTuple

import pytest

from automixalign.config.data import FormatSpec
from automixalign.data.pairs import Pair, make_pair
from automixalign.data.row_formats.registry import make_format
from automixalign.data.row_formats.row_format import DroppedRow
from tests.data.rows import Data, assistant, conversation, plain, system, user


def read(row: Data, name: str, **options: Any) -> Pair:
    row_format = make_format(FormatSpec.model_validate({"name": name, **options}))
    return make_pair(row_format.read(row, lambda: random.Random(0)))


def turn(speaker: str, value: str) -> dict[str, str]:
    return {"from": speaker, "value": value}


def repeated(start: list[Data], chosen: str, rejected: str, **more: Any) -> Data:
    """Sides that repeat the prompt."""
    return {"chosen": [*start, assistant(chosen)], "rejected": [*start, assistant(rejected)], **more}


def dialogue(*turns: str) -> str:
    names = ["Human", "Assistant"] * len(turns)
    return "".join(f"\n\n{name}: {text}" for name, text in zip(names, turns, strict=False))


Q, YES, NO = [user("q")], [assistant("yes")], [assistant("no")]
DEFAULTS: Data = {}


class Case(NamedTuple):
    """A row, and what it says: by default `yes` is preferred to `no` as the answer to `q`."""

    row: Data
    prompt: Any = Q
    chosen: Any = YES
    rejected: Any = NO
    options: Data = DEFAULTS
    derived: bool = False


SYSTEM = [system("s"), user("q")]
TURNS = [user("a"), assistant("b"), user("q")]
PKU = {"prompt": "q", "response_0": "yes", "response_1": "no", "better_response_id": 0, "safer_response_id": 1}
STEER = {"context": Q, "response1": "yes", "response2": "no", "individual_preference": None}
STEER2 = {"response_1": "no", "response_2": "yes", "preference_strength": 1}
RATED = {"generations": ["fair", "no", "yes"], "ratings": [3, 1.5, 4]}
ORCA = {"question": "q", "chosen": "yes", "rejected": "no"}
SIDES = {"chosen": turn("gpt", "yes"), "rejected": turn("gpt", "no")}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}

CASES: dict[str, list[Case]] = {
    "trl": [
        Case(conversation("q", "yes", "no", source="a data set")),
        Case(plain("q", "yes", "no"), "q", "yes", "no"),
        Case(repeated(SYSTEM, "yes", "no"), prompt=SYSTEM, derived=True),
    ],
    "chat": [
        Case(plain("q", "yes", "no")),
        Case(plain("q", "yes", "no", system="s"), prompt=SYSTEM),
        Case(plain("q", "yes", "no", system=" ")),
        Case({"prompt": TURNS, "chosen": "yes", "rejected": "no", "system": "s"}, prompt=[system("s"), *TURNS]),
        Case(conversation("q", "yes", "no")),
        Case(conversation("q", "yes", "no", system_prompt="s"), prompt=SYSTEM),
        Case({**conversation("q", "yes", "no", system=" s"), "prompt": SYSTEM}, prompt=SYSTEM),
        Case(plain("q", "yes", "no", system_message="s", system="s", images=[]), prompt=SYSTEM),
    ],
    "ultrafeedback": [
        Case(repeated(Q, "yes", "no", system="s"), prompt=SYSTEM, derived=True),
        Case(repeated(SYSTEM, "yes", "no", prompt="q", system="s"), prompt=SYSTEM),
        Case(repeated(Q, "yes", "no", prompt="q", score_chosen=8.5, score_rejected=2.0)),
        Case(repeated([user("q ")], "yes", "no", prompt="q\n", score_chosen=None), prompt=[user("q ")]),
        Case(repeated(Q, "yes", "no", score_chosen=2.0, score_rejected=1.0), derived=True),
        Case(
            repeated(Q, "yes", "no", prompt="q", score_chosen=3.0, score_rejected=2.0), options={"min_gap": 1}
        ),
        Case(repeated(SYSTEM, "yes", "no", prompt="q"), prompt=SYSTEM),
        Case(repeated(SYSTEM, "yes", "no", prompt=SYSTEM), prompt=SYSTEM),
        Case(repeated(TURNS, "yes", "no", prompt="a"), prompt=TURNS),
        Case(repeated([], "yes", "no", prompt="q")),
        Case(repeated([], "yes", "no", prompt=TURNS), prompt=TURNS),
        # The sides share an answer too; it is no part of the prompt.
        Case(
            {
                "prompt": "q",
                "chosen": [user("q"), assistant("same"), user("x"), assistant("yes")],
                "rejected": [user("q"), assistant("same"), user("y"), assistant("no")],
            },
            chosen=[assistant("same"), user("x"), assistant("yes")],
            rejected=[assistant("same"), user("y"), assistant("no")],
        ),
    ],
    "hh-rlhf": [
        Case({"chosen": dialogue("q", "yes"), "rejected": dialogue("q", "no")}, derived=True),
        # A blank or an equal beginning does not end the answers.
        Case(
            {"chosen": dialogue("a", "b", "q", "I say yes"), "rejected": dialogue("a", "b", "q", "I say no")},
            prompt=TURNS,
            chosen=[assistant("I say yes")],
            rejected=[assistant("I say no")],
            derived=True,
        ),
        Case(
            {"chosen": dialogue("q", "x", "more", "yes"), "rejected": dialogue("q", "y", "other", "no")},
            chosen=[assistant("x"), user("more"), assistant("yes")],
            rejected=[assistant("y"), user("other"), assistant("no")],
            derived=True,
        ),
        Case(
            {"chosen": dialogue("q", "b", "more", "yes"), "rejected": dialogue("q", "b")},
            chosen=[assistant("b"), user("more"), assistant("yes")],
            rejected=[assistant("b")],
            derived=True,
        ),
        Case(
            {"chosen": "\n\nHuman: q\n\nAssistant: one\n\nAssistant: two", "rejected": dialogue("q", "no")},
            chosen=[assistant("one\n\ntwo")],
            derived=True,
        ),
        Case({"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " yes", "rejected": " no"}),
        Case(
            {
                "prompt": "\n\nHuman: q\n\nAssistant: ",
                "chosen": dialogue("q", "yes"),
                "rejected": dialogue("q", "no"),
            }
        ),
        Case(
            {
                side: dialogue("q", text).replace("\n", "\r\n")
                for side, text in (("chosen", "yes"), ("rejected", "no"))
            },
            derived=True,
        ),
    ],
    "pku-saferlhf": [
        Case(PKU),
        Case(PKU, chosen=NO, rejected=YES, options={"label": "safe"}),
        Case({**PKU, "response_0_severity_level": 0, "is_response_0_safe": True}),
        Case({**PKU, "safer_response_id": -1}),
    ],
    "helpsteer3": [
        Case({**STEER, "overall_preference": -2}),
        Case(
            {**STEER, "overall_preference": 2.0, "context": TURNS},
            prompt=TURNS,
            chosen=NO,
            rejected=YES,
            options={"min_strength": 2},
        ),
        Case({**STEER2, "prompt": "q"}),
        Case({**STEER2, "prompt": "a\n<extra_id_1>Assistant\nb\n<extra_id_1>User\nq"}, prompt=TURNS),
    ],
    "orca": [
        Case({**ORCA, "system": ""}),
        Case({**ORCA, "system": "s"}, prompt=SYSTEM),
        Case({**ORCA, "question": "raw", "prompt": "q"}),
        Case({"input": "q", "system": None, "chosen": "yes", "rejected": "no", "status": "swapped"}),
    ],
    "ratings": [
        Case({"input": "q", **RATED}),
        Case({"instruction": "q", **RATED}, options={"min_gap": 2.5}),
        Case({"prompt": Q, "generations": ["yes", None, "no"], "ratings": [2, 9, 1]}),
        Case({"prompt": "q", "generations": ["yes", "lost", "no"], "ratings": [2, None, 1]}),
        Case({"prompt": "q", "answers": ["yes", "also", "no", "too"], "scores": [2, 2, 1, 1]}),
        Case({"prompt": "q", "answers": ["no", "yes"], "ranks": [2, 1]}),
        Case({"prompt": "q", **RATED, "system": "s"}, prompt=SYSTEM),
        Case({"instruction": "q", **RATED, "system_prompt": "s"}, prompt=SYSTEM),
        Case(
            {
                "instruction": "q",
                "completions": [
                    None,
                    {"response": "lost"},
                    {"response": "no", "rating": 1},
                    {"response": "yes", "rating": 2},
                ],
            }
        ),
        Case({"prompt": dialogue("q", ""), **RATED, "system": "s"}, prompt=SYSTEM),
        Case(
            {
                "instruction": "q",
                "completions": [
                    {"response": "no", "overall_score": 2, "fine-grained_score": 4.5},
                    {"response": "yes", "overall_score": 7, "fine-grained_score": 1.5},
                ],
            }
        ),
        Case(
            {
                "instruction": "q",
                "completions": [
                    {"response": "no", "overall_score": 7, "fine-grained_score": 1.5},
                    {"response": "yes", "overall_score": 2, "fine-grained_score": 4.5},
                ],
            },
            options={"score": "fine-grained_score"},
        ),
        Case(
            {
                "prompt": "\n\nHuman: a\n\nAssistant: b\n\nHuman: q\n\nAssistant: ",
                "answers": [
                    {"answer": "no", "model": "m", "rank": 7.0},
                    {"answer": "yes", "model": "n", "rank": 1.0},
                    {"answer": "fair", "model": "o", "rank": 2.0},
                ],
            },
            prompt=TURNS,
        ),
    ],
    "sharegpt": [
        Case({"conversations": [turn("human", "q")], **SIDES}),
        Case({"conversations": [turn("system", "s"), turn("human", "q")], **SIDES}, prompt=SYSTEM),
        Case({"conversations": [turn("human", "q")], **SIDES, "system": "s"}, prompt=SYSTEM),
        Case(
            {"conversations": [turn("system", "s"), turn("human", "q")], **SIDES, "system": "s"}, prompt=SYSTEM
        ),
        Case({"conversations": [turn("human", "q")], "chosen": "yes", "rejected": [turn("gpt", "no")]}),
        Case({"conversations": Q, "chosen": assistant("yes"), "rejected": assistant("no")}),
        Case({"conversations": [turn("human", "a"), turn("gpt", "b"), turn("human", "q")], **SIDES}, TURNS),
        Case(
            {
                "conversations": [
                    turn("human", "q"),
                    turn("function_call", json.dumps(CALL["function"])),
                    turn("observation", "4"),
                ],
                **SIDES,
            },
            prompt=[
                user("q"),
                {"role": "assistant", "tool_calls": [CALL]},
                {"role": "tool", "content": "4"},
            ],
        ),
    ],
    "alpaca": [
        Case({"instruction": "q", "input": "", "chosen": "yes", "rejected": "no"}),
        Case({"instruction": "q", "output": ["yes", "no", "worse"]}),
        Case({"instruction": "add", "input": "2+2", "output": ["yes", "no"]}, prompt=[user("add\n2+2")]),
        Case(
            {"instruction": "q", "system": "s", "history": [["a", "b"]], "chosen": "yes", "rejected": "no"},
            prompt=[system("s"), *TURNS],
        ),
        Case({"instruction": "q", "input": None, "history": None, "chosen": "yes", "rejected": "no"}),
    ],
}


@pytest.mark.parametrize(
    ("name", "case"),
    [
        pytest.param(name, case, id=f"{name}-{number}")
        for name, cases in CASES.items()
        for number, case in enumerate(cases)
    ],
)
def test_rows_are_read(name: str, case: Case) -> None:
    pair = read(case.row, name, **case.options)
    assert (pair.prompt, pair.chosen, pair.rejected) == (case.prompt, case.chosen, case.rejected)
    assert pair.derived is case.derived


SCORED = repeated(Q, "yes", "no", score_chosen=4.0, score_rejected=4.0)


@pytest.mark.parametrize(
    ("name", "row", "options", "reason"),
    [
        ("ultrafeedback", SCORED, {}, "tie"),
        ("ultrafeedback", SCORED | {"score_rejected": 3.5}, {"min_gap": 1}, "small_gap"),
        ("ultrafeedback", SCORED | {"score_rejected": None}, {"min_gap": 1}, "unrated"),
        ("ultrafeedback", repeated(Q, " ", "no"), {}, "empty"),
        ("hh-rlhf", {"chosen": dialogue("q", "yes"), "rejected": dialogue("p", "no")}, {}, "different_prompts"),
        ("hh-rlhf", {"chosen": dialogue("q", ""), "rejected": dialogue("q", "no")}, {}, "empty"),
        ("hh-rlhf", {"chosen": dialogue("q"), "rejected": dialogue("q", "no")}, {}, "no_answer"),
        ("pku-saferlhf", PKU | {"better_response_id": -1}, {}, "tie"),
        ("pku-saferlhf", PKU | {"safer_response_id": None}, {"label": "safe"}, "tie"),
        ("helpsteer3", STEER | {"overall_preference": 0}, {}, "tie"),
        ("helpsteer3", STEER | {"overall_preference": -1}, {"min_strength": 2}, "small_gap"),
        ("helpsteer3", STEER | {"overall_preference": None}, {}, "unrated"),
        ("orca", ORCA | {"status": "tie"}, {}, "tie"),
        ("orca", ORCA | {"chosen": ""}, {}, "empty"),
        ("ratings", {"input": "q", **RATED, "ratings": [None, float("nan"), 1]}, {}, "unrated"),
        ("ratings", {"input": "q", "generations": [], "ratings": []}, {}, "unrated"),
        ("ratings", {"instruction": "q", "completions": []}, {}, "unrated"),
        ("ratings", {"input": "q", **RATED, "ratings": [2, 2, 2]}, {}, "tie"),
        ("ratings", {"input": "q", **RATED}, {"min_gap": 3}, "small_gap"),
        ("alpaca", {"instruction": "", "chosen": "yes", "rejected": "no"}, {}, "empty"),
    ],
)
def test_rows_without_a_preference_are_dropped_by_name(
    name: str, row: Data, options: Data, reason: str
) -> None:
    with pytest.raises(DroppedRow) as dropped:
        read(row, name, **options)
    assert str(dropped.value) == reason


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("chat", {"chosen": "yes", "rejected": "no"}, "'prompt' is missing; the row has: chosen, rejected"),
        ("chat", {"prompt": "q", "chosen": "yes", "rejected": None}, "'rejected' is null"),
        ("chat", plain("q", "yes", "no", system="s", system_prompt="t"), "'system' and 'system_prompt' differ"),
        *(
            (name, {**row, "image": "a.png"}, "the row has 'image'; only text can be used")
            for name, row in {
                "trl": plain("q", "yes", "no"),
                "chat": plain("q", "yes", "no"),
                "orca": ORCA,
                "alpaca": {"instruction": "q", "output": ["a", "b"]},
                "ultrafeedback": repeated(Q, "yes", "no"),
            }.items()
        ),
        ("ultrafeedback", plain("q", "yes", "no"), "'chosen' must be a list of messages; .*'format: chat'"),
        ("ultrafeedback", repeated(Q, "yes", "no", prompt="other"), "do not begin with the 'prompt'"),
        ("ultrafeedback", repeated(Q, "yes", "no", prompt=None), "'prompt' is null"),
        ("ultrafeedback", repeated([], "yes", "no"), "do not begin with the same prompt"),
        (
            "ultrafeedback",
            {"prompt": "q", "chosen": [user("q"), assistant("yes")], "rejected": [user("p"), assistant("no")]},
            "do not begin with the 'prompt'",
        ),
        ("ultrafeedback", SCORED | {"score_chosen": "high"}, "'score_chosen' must be a number, not 'high'"),
        ("hh-rlhf", {"chosen": "yes", "rejected": "no"}, "must begin with 'Human:', not with 'yes'"),
        ("hh-rlhf", {"chosen": "\n\nAssistant: a", "rejected": "b"}, "must begin with 'Human:'"),
        ("hh-rlhf", conversation("q", "yes", "no") | {"prompt": ""}, "'chosen' must be text, not a list"),
        ("pku-saferlhf", {"prompt": "q"}, "'better_response_id' is missing; the row has: prompt"),
        ("pku-saferlhf", PKU | {"better_response_id": 2}, "must be 0 or 1, or -1 for a tie, not 2"),
        ("helpsteer3", {"response1": "a"}, "'context' is missing; the row has: response1"),
        ("helpsteer3", STEER, "'overall_preference' is missing"),
        ("helpsteer3", STEER | {"overall_preference": "much"}, "'overall_preference' must be a number"),
        ("orca", {"chosen": "yes", "rejected": "no"}, "'prompt' is missing; the row has: chosen, rejected"),
        (
            "orca",
            ORCA | {"input": "p"},
            "has 'question' and 'input'; say which to read, as in 'columns: {prompt: question}'",
        ),
        ("ratings", {"input": "q"}, "'generations' is missing"),
        ("ratings", {"input": "q", "generations": ["a"]}, "'ratings' is missing"),
        ("ratings", {"input": "q", "generations": ["a", "b"], "ratings": [1]}, "2 'generations' have 1 'rat"),
        ("ratings", {"input": "q", **RATED, "ratings": ["N/A", 1, 2]}, "'ratings' must be a number, not 'N/A'"),
        ("ratings", {"input": "q", "completions": [{"response": "a"}]}, "have no 'overall_score'; they have"),
        ("sharegpt", SIDES, "'conversations' is missing; the row has: chosen, rejected"),
        (
            "sharegpt",
            {"conversations": [turn("bing", "q")], **SIDES},
            r"conversations\[0\] is from 'bing'; there",
        ),
        ("sharegpt", {"conversations": [{"text": "q"}], **SIDES}, r"conversations\[0\] has neither 'from'"),
        (
            "sharegpt",
            {"conversations": [turn("human", "q"), turn("function_call", "f()")], **SIDES},
            r"function_call conversations\[1\] is not JSON",
        ),
        (
            "sharegpt",
            {"conversations": [turn("human", "q")], **SIDES, "images": ["a.png"]},
            "has 'images'; only",
        ),
        ("alpaca", {"instruction": "q", "output": ["yes"]}, "'output' must hold the better and the worse"),
        ("alpaca", {"instruction": "q", "output": "yes"}, "'chosen' is missing"),
        ("alpaca", {"instruction": "q", "history": [["a"]], "output": ["a", "b"]}, "'history' must hold lists"),
    ],
)
def test_a_row_of_another_layout_is_refused_with_the_field(name: str, row: Data, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(row, name)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("pku-saferlhf", PKU | {"better_response_id": "0"}),
        ("helpsteer3", STEER2 | {"prompt": "q", "preference_strength": "1", "context": ""}),
        ("ratings", {"input": "q", "generations": '["no", "yes"]', "ratings": "[1, 2.5]", "prompt": ""}),
        ("alpaca", {"instruction": "q", "input": "", "history": "", "output": '["yes", "no"]'}),
        ("orca", ORCA | {"question": "", "input": "q", "system": ""}),
        *(
            (name, {key: json.dumps(value) for key, value in row.items()})
            for name, row in (
                ("trl", conversation("q", "yes", "no")),
                ("chat", conversation("q", "yes", "no")),
                ("ultrafeedback", repeated(Q, "yes", "no")),
            )
        ),
        ("helpsteer3", STEER | {"context": json.dumps(Q), "overall_preference": -1}),
    ],
)
def test_cells_of_csv_are_read(name: str, row: Data) -> None:
    pair = read(row, name)
    assert (pair.prompt, pair.chosen, pair.rejected) == (Q, YES, NO)


def test_a_random_rejected_answer_is_one_of_the_worse() -> None:
    row = {"input": "q", "generations": ["fair", "no", "yes", "close"], "ratings": [3, 1, 4, 3.5]}
    row_format = make_format(FormatSpec.model_validate({"name": "ratings", "rejected": "random", "min_gap": 1}))
    drawn = {
        row_format.read(row, lambda seed=seed: random.Random(seed))["rejected"][0]["content"]
        for seed in range(20)
    }
    assert drawn == {"fair", "no"}


@pytest.mark.parametrize("name", ["chat", "orca", "ratings", "hh-rlhf", "alpaca", "sharegpt", "ultrafeedback"])
def test_answers_for_verifiers_are_passed_on(name: str) -> None:
    assert read(CASES[name][0].row | {"answer": "4"}, name).answer == "4"


@pytest.mark.parametrize("name", ["chat", "alpaca", "sharegpt", "ultrafeedback"])
def test_tools_are_passed_on(name: str) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    assert read(CASES[name][0].row | {"tools": json.dumps([tool])}, name).options == {"tools": [tool]}


JUNK: list[Any] = [
    None,
    True,
    3,
    float("nan"),
    "x",
    "[",
    "",
    [],
    {},
    [1],
    [None],
    [[]],
    [{}],
    [{"role": 1}],
    {"a": 1},
]


@pytest.mark.parametrize("name", CASES)
def test_whatever_stands_in_a_field_the_row_is_read_dropped_or_refused(name: str) -> None:
    for case in CASES[name]:
        for field in [*case.row, "system", "answer", "tools", "chat_template_kwargs"]:
            value = case.row.get(field)
            nested = value[0] if isinstance(value, list) and value else None
            within = [[junk, *value[1:]] for junk in JUNK] if nested else []
            if isinstance(nested, dict):
                within += [[nested | {key: junk}] for key in nested for junk in JUNK]
            for junk in [*JUNK, *within]:
                with contextlib.suppress(ValueError, DroppedRow):
                    read(case.row | {field: junk}, name, **case.options)
