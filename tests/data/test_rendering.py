"""What the templates of well-known models render is tokenised as by TRL, and nothing is lost in silence."""

import datetime
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import AddedToken, processors
from transformers import PreTrainedTokenizerFast
from trl import DPOTrainer

from automixalign.data.tokenization.rendering import asks_for_date
from automixalign.data.tokens import Tokens, prompt_ids, tokenize
from automixalign.system.errors import DataError
from tests.data.rows import Data, assistant, conversation, parsed, system, user
from tests.data.templates import TEMPLATES
from tests.data.tokenizers_to_test import small_bpe

_MARKS = (
    *("<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>"),
    *("<start_of_turn>", "<end_of_turn>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("[INST]", "[/INST]", "[TOOL_CALLS]", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),  # noqa: RUF001
)
DATE = datetime.date(2021, 3, 4)


def tool(name: str) -> Data:
    parameters = {"type": "object", "properties": {"town": {"type": "string"}}}
    return {
        "type": "function",
        "function": {"name": name, "description": "of a town", "parameters": parameters},
    }


def call(arguments: Any) -> Data:
    return {"type": "function", "id": "abcdefghi", "function": {"name": "weather", "arguments": arguments}}


CALLED = [
    user("cold in Köln?"),
    {"role": "assistant", "content": "a moment", "tool_calls": [call({"town": 'the "old" Köln'})]},
    {"role": "tool", "content": "rain", "name": "weather"},
]
THOUGHT = {"role": "assistant", "reasoning_content": "so it\nis", "content": "blue"}
PARTS = [{"type": "text", "text": "a "}, {"type": "text", "text": "and b"}]
ROWS: dict[str, Data] = {
    "plain": conversation(" what? ", "blue ", " <black> & 'red'\n"),
    "system": {**conversation("x", "y", "z"), "prompt": [system("be kind"), user("x")]},
    "turns": {**conversation("x", "y", "z"), "prompt": [user("1"), assistant("2"), user("3")]},
    "turns in a side": {**conversation("x", "y", "z"), "chosen": [assistant("1"), user("2"), assistant("3")]},
    "two systems": {
        **conversation("x", "y", "z"),
        "prompt": [system("first"), user("1"), system("second"), user("2")],
    },
    "tools": conversation("x", "y", "z", tools=[tool("weather"), tool("time")]),
    "tools as text": conversation("x", "y", "z", tools='[{"function": {"name": "weather"}}]'),
    "called": {**conversation("x", "y", "z", tools=[tool("weather")]), "prompt": CALLED},
    "call in a side": {
        **conversation("x", "y", "z"),
        "chosen": [{**assistant("I look"), "tool_calls": [call({"a": 1})]}],
    },
    "call without content": {
        **conversation("x", "y", "z", tools=[tool("weather")]),
        "chosen": [{"role": "assistant", "content": None, "tool_calls": [call('{"town": "Köln"}')]}],
        "rejected": [{"role": "assistant", "content": None, "tool_calls": [call('{"town": "Bonn"}')]}],
    },
    "parts": {**conversation("x", "y", "z"), "prompt": [{"role": "user", "content": PARTS}]},
    "reasoning": {**conversation("x", "y", "z"), "chosen": [THOUGHT]},
    "reasoning by another name": {
        **conversation("x", "y", "z"),
        "chosen": [{"role": "assistant", "thinking": "so", "content": "blue"}],
    },
    "reasoning of an earlier turn": {**conversation("x", "y", "z"), "prompt": [user("1"), THOUGHT, user("3")]},
    "thought in a text": conversation("x", "<think>so</think>blue", "<think>\nno"),
    "thought of an earlier turn": {
        **conversation("x", "y", "z"),
        "prompt": [user("1"), assistant("<think>so</think>blue"), user("3")],
    },
    "no thinking": conversation("x", "y", "z", chat_template_kwargs={"enable_thinking": False}),
    "a date": conversation("x", "y", "z", chat_template_kwargs={"date_string": "1 May 1999"}),
    "another template": conversation("x", "y", "z", chat_template_kwargs={"chat_template": TEMPLATES["gemma"]}),
    "other tools": conversation("x", "y", "z", chat_template_kwargs={"tools": [tool("time")]}),
    "bos token": conversation("x", "y", "z", chat_template_kwargs={"bos_token": "<b>"}),
    "reserved": conversation("x", "y", "z", chat_template_kwargs={"add_generation_prompt": True}),
}
"""Name -> row."""


@pytest.fixture(scope="session")
def speaking() -> Callable[[str | dict[str, str]], PreTrainedTokenizerFast]:
    """Gives a tokenizer a template."""
    made = small_bpe(*(AddedToken(mark, normalized=False, special=True) for mark in _MARKS))

    def speak(template: str | dict[str, str]) -> PreTrainedTokenizerFast:
        made.chat_template = template
        return made

    return speak


class _Rows(list[Data]):
    """What TRL uses of a data set."""

    def map(self, function: Callable[..., Data], fn_kwargs: Data) -> "_Rows":
        return _Rows(function(row, **fn_kwargs) for row in self)


def by_trl(tokenizer: PreTrainedTokenizerFast, row: Data) -> tuple[list[int], ...]:
    """The ids of prompt, chosen and rejected."""
    arguments = SimpleNamespace(dataset_num_proc=None, max_length=None)
    (ids,) = DPOTrainer._prepare_dataset(None, _Rows([row]), tokenizer, arguments, "train")
    return ids["prompt_ids"], ids["chosen_ids"], ids["rejected_ids"]


def tokens_of(tokenizer: PreTrainedTokenizerFast, row: Data, date: datetime.date | None = None) -> Tokens:
    (chunk,) = tokenize(tokenizer, [parsed(row)], 10_000, date)
    return chunk.tokens[0]


def rendering(tokenizer: PreTrainedTokenizerFast, row: Data, date: datetime.date | None = None) -> str:
    ids = tokens_of(tokenizer, row, date)
    return str(tokenizer.decode(ids.prompt + ids.chosen))


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_ids_are_those_of_trl_or_both_refuse(speaking: Any, template: str, row: str) -> None:
    tokenizer = speaking(TEMPLATES[template])
    try:
        expected = by_trl(tokenizer, ROWS[row])
    except Exception:
        with pytest.raises(DataError, match="the chat template refuses a pair"):
            tokens_of(tokenizer, ROWS[row])
    else:
        assert tokens_of(tokenizer, ROWS[row])[:3] == expected


def test_few_rows_are_refused(speaking: Any) -> None:
    """Otherwise the comparison above would not say much."""
    refused = []
    for row, template in ((row, template) for row in ROWS for template in TEMPLATES):
        try:
            by_trl(speaking(TEMPLATES[template]), ROWS[row])
        except Exception:
            refused.append((template, row))
    assert len(refused) < len(ROWS) * len(TEMPLATES) / 3


def test_tools_choose_among_named_templates(speaking: Any) -> None:
    tokenizer = speaking({"default": TEMPLATES["gemma"], "tool_use": TEMPLATES["qwen2.5"]})
    for row in ("plain", "tools"):
        assert tokens_of(tokenizer, ROWS[row])[:3] == by_trl(tokenizer, ROWS[row])
    assert "weather" in rendering(tokenizer, ROWS["tools"])


def test_named_templates_without_a_default_are_refused(speaking: Any) -> None:
    tokenizer = speaking({"rag": TEMPLATES["gemma"]})
    with pytest.raises(DataError, match="multiple chat templates with no default"):
        tokens_of(tokenizer, ROWS["plain"])


def test_pairs_of_one_prompt_and_different_options(speaking: Any) -> None:
    tokenizer = speaking(TEMPLATES["qwen3"])
    rows = [
        conversation("x", "y", "z"),
        conversation("x", "y", "y y"),
        conversation("x", "y", "z", tools=[tool("weather")]),
        conversation("x", "y", "z"),
        *({**conversation("x", "y", "z"), "prompt": [{**user("x"), "n": n}]} for n in (1, 1.0, True)),
    ]
    tokenizer.chat_template += "{{ messages[0].n }}"
    (chunk,) = tokenize(tokenizer, map(parsed, rows), 10_000)
    assert [tokens[:3] for tokens in chunk.tokens] == [by_trl(tokenizer, row) for row in rows]


def test_a_prompt_that_is_no_beginning_of_the_conversation(speaking: Any) -> None:
    """Answers are generated from the whole of it, which opens a thought here."""
    tokenizer = speaking(TEMPLATES["r1_distill"])
    tokens = tokens_of(tokenizer, ROWS["plain"])
    assert tokens.prompt_cut
    prompt = parsed(ROWS["plain"]).prompt
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    assert tokens.generation == ids == prompt_ids(tokenizer, prompt)
    assert tokenizer.decode(ids).endswith("<think>\n")
    tokens = tokens_of(tokenizer := speaking(TEMPLATES["gemma"]), ROWS["plain"])
    assert not tokens.prompt_cut and tokens.generation is None
    assert prompt_ids(tokenizer, prompt) == tokens.prompt


def test_a_prompt_alone_gets_its_tools_and_its_date(speaking: Any) -> None:
    row = {**conversation("x", "y", "z", tools=[tool("weather")]), "chat_template_kwargs": {"a": 1}}
    tokenizer = speaking("{{ tools|length }} {{ a }} {{ strftime_now('%Y') }} {{ messages[0].content }} ")
    pair = parsed(row)
    (chunk,) = tokenize(tokenizer, [pair], 10_000, datetime.date(1999, 1, 1))
    ids = prompt_ids(tokenizer, pair.prompt, pair.options, datetime.date(1999, 1, 1))
    assert ids == (chunk.tokens[0].generation or chunk.tokens[0].prompt)
    assert tokenizer.decode(ids).strip() == "1 1 1999 x"


def test_a_tokenizer_that_ends_every_text_does_not_end_a_prompt() -> None:
    tokenizer = small_bpe()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    pair = parsed({"prompt": "the answer is:", "chosen": " blue", "rejected": " black"})
    (chunk,) = tokenize(tokenizer, [pair], 100)
    assert tokenizer.decode(prompt_ids(tokenizer, "the answer is:")) == "<s>the answer is:"
    assert chunk.tokens[0].generation is None


def test_refused_pairs_are_named_with_the_reason(speaking: Any) -> None:
    tokenizer = speaking(TEMPLATES["gemma"])
    rows = [
        {**conversation("x", "y", "z"), "prompt": [user(f"q{number}"), user("again")]} for number in range(12)
    ]
    with pytest.raises(DataError) as caught:
        list(tokenize(tokenizer, map(parsed, [ROWS["plain"], *rows]), 100))
    message = str(caught.value)
    assert message.startswith(
        "the chat template refuses 10 pairs; change these rows or leave them out with 'where'"
    )
    assert all(
        f"\n  'user: q{number}\\nuser: again': Conversation roles must" in message for number in range(10)
    )
    assert "q10" not in message


def test_a_refused_system_message_comes_with_advice(speaking: Any) -> None:
    with pytest.raises(DataError, match="a pair; it takes no system message; put such text at the beginning"):
        tokens_of(speaking(TEMPLATES["gemma"]), ROWS["system"])


@pytest.mark.parametrize(
    ("template", "row", "lost"),
    [
        *((template, "plain", None) for template in TEMPLATES),
        ("qwen3", "thought in a text", None),
        ("r1_distill", "system", None),
        ("r1_distill", "tools", "tools[0] weather"),
        ("gemma", "call in a side", "tool_calls of chosen[0] (assistant)"),
        ("gemma", "reasoning", "reasoning_content of chosen[0] (assistant)"),
        ("gemma", "reasoning by another name", "thinking of chosen[0] (assistant)"),
        ("r1_distill", "thought of an earlier turn", "content of prompt[1] (assistant)"),
        ("r1_distill", "two systems", "content of prompt[0] (system)"),
        ("qwen3", "reasoning of an earlier turn", "reasoning_content of prompt[1] (assistant)"),
        ("qwen3", "parts", "content of prompt[0] (user)"),
        ("qwen3", "called", None),
        ("qwen3", "call without content", None),
        ("qwen2.5", "call without content", None),
        ("llama3", "call in a side", "content of chosen[0] (assistant)"),
        ("llama3", "call without content", None),
        ("mistral", "call without content", None),
    ],
)
def test_lost_text(speaking: Any, template: str, row: str, lost: str | None) -> None:
    assert tokens_of(speaking(TEMPLATES[template]), ROWS[row]).lost == lost


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_that_ask_for_the_date(speaking: Any, template: str) -> None:
    assert asks_for_date(speaking(TEMPLATES[template])) == (template == "llama3")


def test_the_time_of_day_and_a_date_beside_tools_count_too(speaking: Any) -> None:
    assert asks_for_date(speaking("{{ strftime_now('%H') }}"))
    assert asks_for_date(speaking("{% if tools %}{{ strftime_now('%d') }}{% endif %}"))
    assert not asks_for_date(speaking("{{ strftime_now('') }}{{ messages[0].content }}"))


def test_the_date_is_the_given_one(speaking: Any) -> None:
    tokenizer = speaking(TEMPLATES["llama3"])
    assert "Today Date: 04 Mar 2021\n" in rendering(tokenizer, ROWS["plain"], DATE)
    assert "Today Date: 04 Mar 2021\n" in rendering(tokenizer, ROWS["tools"], DATE)
    assert "Today Date: 1 May 1999\n" in rendering(tokenizer, ROWS["a date"], DATE)


def test_a_given_date_does_not_stay(speaking: Any) -> None:
    tokenizer = speaking("{{ strftime_now('%Y') }}{{ messages[-1].content }}")
    tokens_of(tokenizer, ROWS["plain"], DATE)
    assert "2021" not in rendering(tokenizer, ROWS["plain"])
    assert "2021" not in tokenizer.apply_chat_template([user("x")], tokenize=False)
