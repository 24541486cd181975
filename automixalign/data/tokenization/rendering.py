"""Render messages by a tokenizer's chat template, to the same text as `apply_chat_template`, but in less time.

A chat template is a program of the model's author. It may read all of a message, the tools and any other
variable that a row sets, and it may refuse a conversation.
"""

import datetime
import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from automixalign.data.pairs import Message, Options, Pair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TWO_MOMENTS = (datetime.datetime(2001, 2, 3, 4, 5, 6), datetime.datetime(2022, 11, 14, 17, 18, 19))
_TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "f", "parameters": {"type": "object", "properties": {}}},
}
_USER: Message = {"role": "user", "content": "hello"}
_SYSTEM: Message = {"role": "system", "content": "hello"}


class Texts(NamedTuple):
    """What the model sees of a pair: the prompt, and the prompt with each side."""

    prompt: str
    chosen: str
    rejected: str


class _Prompt(NamedTuple):
    messages: list[Message]
    text: str


class Renderer:
    """Renders pairs of messages by the chat template of one tokenizer."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", date: datetime.date | None = None) -> None:
        """Take the chat template of a tokenizer.

        Args:
            date: what `strftime_now` of the template returns; by default the present time, as in transformers.
        """
        self._tokenizer = tokenizer
        self._date = date
        self._special_tokens = tokenizer.special_tokens_map
        self._templates: dict[str, _Template] = {}
        self._without_options: tuple[_Template, dict[str, Any]] | None = None
        self._last_prompt = _Prompt([], "")

    def __call__(self, pair: Pair) -> Texts:
        """The texts of a pair of messages.

        Raises:
            Exception: of any kind, from the chat template, or for a variable that no template can have.
        """
        template, variables = self._template(pair.options)
        prompt: Any = pair.prompt
        sides: Any = (pair.chosen, pair.rejected)
        whole = (template.render(_readable([*prompt, *side]), variables) for side in sides)
        if pair.options is not None or prompt != self._last_prompt.messages:
            text = template.render(_readable(prompt), {**variables, "add_generation_prompt": True})
            # Pairs of one prompt often follow each other. Only texts render alike whenever they are equal.
            reusable = pair.options is None and all(map(_is_plain, prompt))
            self._last_prompt = _Prompt(prompt if reusable else [], text)
        return Texts(self._last_prompt.text, *whole)

    def _template(self, options: Options | None) -> tuple["_Template", dict[str, Any]]:
        """The template for pairs with these options, and its variables beside the messages."""
        if options is None:
            if self._without_options is None:
                self._without_options = self._make_template({})
            return self._without_options
        return self._make_template({"tools": options.get("tools"), **options.get("chat_template_kwargs", {})})

    def _make_template(self, chosen: dict[str, Any]) -> tuple["_Template", dict[str, Any]]:
        if reserved := _reserved_names(self._tokenizer).intersection(chosen):
            raise ValueError(
                f"'chat_template_kwargs' sets {min(reserved)!r}, which is no variable of a template"
            )
        given = {"tools": None, "documents": None, **chosen}
        text = self._tokenizer.get_chat_template(given.pop("chat_template", None), given["tools"])
        for name in ("tools", "documents"):
            if not all(isinstance(each, dict) for each in given[name] or ()):
                raise ValueError(f"{name!r} must be a list of objects")
        if text not in self._templates:
            self._templates[text] = _Template(text, self._date)
        return self._templates[text], {"add_generation_prompt": False, **self._special_tokens, **given}


class _Template:
    """A compiled chat template."""

    def __init__(self, text: str, date: datetime.date | None) -> None:
        from transformers.utils.chat_template_utils import _compile_jinja_template

        template = _compile_jinja_template(text)
        if date is not None:
            template = template.environment.from_string(text, globals={"strftime_now": date.strftime})
        self._new_context = template.new_context
        self._root: Callable[[Any], Iterable[str]] = template.root_render_func
        # Jinja's own `render` collects these again each time, which takes as long as a short template itself.
        self._globals = dict(template.globals)

    def render(self, messages: list[Message], variables: dict[str, Any]) -> str:
        """The text of a conversation."""
        return "".join(
            self._root(self._new_context({**self._globals, **variables, "messages": messages}, shared=True))
        )


def _is_plain(message: Any) -> bool:
    """Whether a message is a role and a text."""
    return len(message) == 2 and type(message.get("content")) is str


def _readable(messages: list[Any]) -> list[Message]:
    """The messages as transformers gives them to templates: reasoning under each name that templates read."""
    if all(map(_is_plain, messages)):
        return messages
    from transformers.utils import chat_template_utils

    readable: list[Message] = getattr(chat_template_utils, "_alias_reasoning_fields", list)(messages)
    return readable


def _reserved_names(tokenizer: "PreTrainedTokenizerBase") -> set[str]:
    """Arguments of transformers' functions, which would not reach a template as variables."""
    from transformers.utils.chat_template_utils import render_jinja_template

    functions = (type(tokenizer).apply_chat_template, render_jinja_template)
    names = {
        name
        for function in functions
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    }
    return (names | {"messages"}) - {"tools", "documents", "chat_template"}


def asks_for_date(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the chat template writes today's date into conversations, so that each day gives other tokens."""

    def rendering(messages: list[Message], options: Options | None, moment: datetime.datetime) -> str | None:
        pair = Pair("", messages, messages, messages, options=options)
        try:
            return Renderer(tokenizer, moment)(pair).prompt
        except Exception:  # a template may refuse a system message or tools
            return None

    return any(
        len({rendering(messages, options, moment) for moment in _TWO_MOMENTS}) > 1
        for messages in ([_USER], [_SYSTEM, _USER])
        for options in (None, {"tools": [_TOOL]})
    )
