"""Conversations with the same roles are rendered once only where a template copies their contents."""

import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from automixalign.data.pairs import Pair
from automixalign.data.tokenization.rendering import Renderer
from tests.data.rows import assistant, conversation, parsed, system, user
from tests.data.templates import TEMPLATES
from tests.data.tokenizers_to_test import TEMPLATE, merging_bpe, small_bpe

_EACH = "{% for m in messages %}"
_COPYING = {
    "printed": _EACH + "<{{ m.role }}>{{ m['content'] }}{% endfor %}",
    "stripped": _EACH + "{{ m.content | trim }} {{ m.content.strip() + ' ' + m.content }}{% endfor %}",
    "stripped before another": _EACH + "{{ m.content | trim }}{{ m.content }}{% endfor %}",
    "in a variable": "{% set c = messages[0]['content'] | trim %}"
    "{% if messages|length > 2 %}{% set c = '' %}{% endif %}"
    "{% set messages = messages[1:] %}{{ c ~ messages | count }}" + _EACH + "{{ m.content }}{% endfor %}",
    "or a default": _EACH + "{{ m.content or 'x' }}{{ 'a' if m.content else 'b' }}{% endfor %}",
    "of a type": _EACH
    + "{% if m.content is string and 'tool_calls' not in m %}{{ m.content }}{% endif %}{% endfor %}",
    "read in vain": _EACH
    + "{% if m.role == 'tool' %}{{ m.content | tojson }}{% else %}{{ m.content }}{% endif %}"
    "{% endfor %}",
    "the last": "{% set ns = namespace(i=0) %}" + _EACH + "{% set ns.i = ns.i + 1 %}{% endfor %}"
    "{{ ns.i }}{{ messages[ns.i - 1].content }}{{ messages[-1].content }}",
    "some": "{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ m.content }}{% endfor %}",
}
_READING = {
    "contains": _EACH + "{% if 'x' in m.content %}X{% endif %}{{ m.content }}{% endfor %}",
    "contained": _EACH + "{% if m.content in 'xx yy' %}X{% endif %}{% endfor %}",
    "length": _EACH + "{{ m.content | length }}{% endfor %}",
    "collected": "{% set ns = namespace(t='') %}" + _EACH + "{% set ns.t = ns.t + m.content %}{% endfor %}"
    "{{ ns.t | length }}",
    "upper case": _EACH + "{{ m.content | upper }}{% endfor %}",
    "a character": _EACH + "{{ m.content[0] }}{{ m.content[1:] }}{% endfor %}",
    "characters": _EACH + "{% for c in m.content %}{{ c }}.{% endfor %}{% endfor %}",
    "a message": "{{ messages[0] }}{{ messages | tojson }}",
    "fields": _EACH + "{% for k, v in m.items() %}{{ k }}{{ v | length }}{% endfor %}{% endfor %}",
    "get": _EACH + "{{ m.get('content') | length }}{% endfor %}",
    "a joined name": _EACH + "{{ m['con' ~ 'tent'] | length }}{% endfor %}",
    "mapped": "{{ messages | map(attribute='content') | join('-') | length }}",
    "a macro": "{% macro f(c) %}{{ c | length }}{% endmacro %}" + _EACH + "{{ f(m.content) }}{% endfor %}",
    "the truth of a macro": "{% macro f() %}{% endmacro %}{% if f %}Y{% endif %}"
    + _EACH
    + "{{ m.content }}{% endfor %}",
    "a block": _EACH + "{% set x %}{{ m.content }}{% endset %}{{ x | length }}{% endfor %}",
    "a filter": _EACH + "{% filter upper %}{{ m.content }}{% endfilter %}{% endfor %}",
    "escaped": _EACH + "{{ ('<b>' | safe) + m.content }}{% endfor %}",
    "stripped text": _EACH + "{{ (m.content ~ ' ') | trim }}{{ m.content | trim('x') }}{% endfor %}",
    "left": _EACH + "{{ m.content.lstrip() }}{{ m.content.strip('x') }}{% endfor %}",
    "compared": _EACH + "{{ m.content == messages[0].content }}{{ m == messages[0] }}{% endfor %}",
    "neighbours": _EACH + "{% if not loop.first %}{{ loop.previtem.content | length }}{% endif %}{% endfor %}",
    "changed": _EACH + "{{ loop.changed(m.content) }}{% endfor %}",
    "formatted": _EACH + "{{ '%.2s' % m.content }}{{ '{:.2}'.format(m.content) }}{% endfor %}",
    "a test": _EACH + "{{ m.content is eq 'x' }}{{ m.content is upper }}{% endfor %}",
    "chosen": "{% for m in messages if 'x' in m.content %}{{ loop.index }}{% endfor %}",
    "with": _EACH + "{% with c = m.content %}{{ c | length }}{% endwith %}{% endfor %}",
    "recursive": "{% for m in messages recursive %}{{ m.content | length }}{% endfor %}",
    "in a list": _EACH + "{{ [m.content] | first | length }}{{ {'a': m.content}.a | length }}{% endfor %}",
    "renamed": "{% set a = messages %}{% for a in a %}{{ a.content | length }}{% endfor %}",
    "later": "{% set c = 'x' %}"
    "{% for i in range(2) %}{{ c | length }}{% set c = messages[0].content %}{% endfor %}"
    "{{ messages[0].content }}",
    "refused": _EACH + "{% if 'x' in m.content %}{{ raise_exception(m.content) }}{% endif %}{% endfor %}",
    "generation": _EACH + "{% generation %}{{ m.content | length }}{% endgeneration %}{% endfor %}",
    "the clock": "{% set ns = namespace(f=strftime_now) %}{{ ns.f('%f') }}"
    + _EACH
    + "{{ m.content }}{% endfor %}",
}
_TEXTS = st.text(st.sampled_from("xX <&'\n\t\u2003\ue0001\ue001"), max_size=8)


def rendered(render: Renderer, pair: Pair) -> Any:
    try:
        return render(pair)
    except Exception as error:
        return str(error)


def by_transformers(tokenizer: PreTrainedTokenizerFast, pair: Pair) -> Any:
    prompt: Any = pair.prompt
    try:
        prompt_text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        sides: Any = (pair.chosen, pair.rejected)
        return prompt_text, *(tokenizer.apply_chat_template(prompt + side, tokenize=False) for side in sides)
    except Exception as error:
        return str(error)


def uses_copies(tokenizer: PreTrainedTokenizerFast, date: Any = None) -> bool:
    render = Renderer(tokenizer, date)
    render(parsed(conversation("a", "b", "c")))
    voice = render._without_options
    assert voice is not None
    return None not in voice._frames.values()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return small_bpe()


@pytest.mark.parametrize("template", _COPYING)
def test_copies_are_noticed(tokenizer: PreTrainedTokenizerFast, template: str) -> None:
    tokenizer.chat_template = _COPYING[template]
    assert uses_copies(tokenizer)


@pytest.mark.parametrize("template", _READING)
def test_readings_are_noticed(tokenizer: PreTrainedTokenizerFast, template: str) -> None:
    tokenizer.chat_template = _READING[template]
    assert not uses_copies(tokenizer)


@pytest.mark.parametrize(
    "template", [TEMPLATE, merging_bpe().chat_template, *map(TEMPLATES.get, ("gemma", "qwen2.5"))]
)
def test_well_known_templates_only_copy(tokenizer: PreTrainedTokenizerFast, template: str) -> None:
    tokenizer.chat_template = template
    assert uses_copies(tokenizer)


def test_a_template_that_asks_for_the_date_only_copies_when_it_is_given(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokenizer.chat_template = TEMPLATES["llama3"]
    assert uses_copies(tokenizer, datetime.date(2021, 3, 4))
    assert not uses_copies(tokenizer)


_ALL = _COPYING | {name: text for name, text in _READING.items() if name != "the clock"} | TEMPLATES


@pytest.mark.parametrize("template", _ALL)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_texts_are_those_of_transformers(
    tokenizer: PreTrainedTokenizerFast, template: str, data: st.DataObject
) -> None:
    tokenizer.chat_template = _ALL[template]
    render = Renderer(tokenizer)
    makers = (user, assistant, system)
    messages = st.builds(lambda make, text: make(text), st.sampled_from(makers), _TEXTS)
    turns = st.tuples(*[st.lists(messages, min_size=1, max_size=2)] * 3)
    for turn in data.draw(st.lists(turns, min_size=2, max_size=5)):
        pair = Pair("", *turn)
        assert rendered(render, pair) == by_transformers(tokenizer, pair)
