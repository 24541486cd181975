"""Render messages by a tokenizer's chat template, to the same text as `apply_chat_template`, but in less time.

A chat template is a program of the model's author. It may read all of a message, the tools and any other
variable that a row sets, and it may refuse a conversation.
"""

import datetime
import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from automixalign.data.pairs import Message, Options, Pair
from automixalign.data.tokenization.copying import Frame, refuse_to_read_contents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TWO_MOMENTS = (datetime.datetime(2001, 2, 3, 4, 5, 6), datetime.datetime(2022, 11, 14, 17, 18, 19))
_TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "f", "parameters": {"type": "object", "properties": {}}},
}
_MAX_FRAMES = 1000
_PROBES = (
    "text {0}",
    " \n\t text {0} \n ",
    "<think>\n{0}\n</think>\n\nanswer {0}",
    "{0}",
    "<tool_call>{{}}</tool_call>",
)
"""Contents for which a frame must equal the template's own rendering, as a guard against a wrong analysis."""
_USER: Message = {"role": "user", "content": "hello"}
_SYSTEM: Message = {"role": "system", "content": "hello"}


_Variables: TypeAlias = dict[str, Any]


class Texts(NamedTuple):
    """What the model sees of a pair: the prompt, and the prompt with each side."""

    prompt: str
    chosen: str
    rejected: str


class Renderer:
    """Renders pairs of messages by the chat template of one tokenizer."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", date: datetime.date | None = None) -> None:
        """Take the chat template of a tokenizer.

        Args:
            date: what `strftime_now` of the template returns; by default the present time, as in transformers.
        """
        self._tokenizer = tokenizer
        self._date = date
        self._reserved = _reserved_names(tokenizer)
        self._templates: dict[str, _Template] = {}
        self._without_options: _Voice | None = None

    def __call__(self, pair: Pair) -> Texts:
        """The texts of a pair of messages.

        Raises:
            Exception: of any kind, from the chat template, or for a variable that no template can have.
        """
        voice = self._voice_of(pair.options)
        prompt: Any = pair.prompt
        chosen: Any = pair.chosen
        rejected: Any = pair.rejected
        plain = pair.options is None and all(map(_is_plain, chain(prompt, chosen, rejected)))
        render = voice.render_plain if plain else voice.render
        return Texts(render(prompt, True), render(prompt + chosen, False), render(prompt + rejected, False))

    def prompt(self, messages: Any, options: Options | None) -> str:
        """The text of a prompt alone, with the beginning of its answer.

        Raises:
            Exception: as for a pair.
        """
        return self._voice_of(options).render(messages, True)

    def _voice_of(self, options: Options | None) -> "_Voice":
        if options is None:
            self._without_options = self._without_options or self._voice({})
            return self._without_options
        return self._voice({"tools": options.get("tools"), **options.get("chat_template_kwargs", {})})

    def _voice(self, options: Options) -> "_Voice":
        if reserved := self._reserved.intersection(options):
            raise ValueError(f"{min(reserved)!r} of 'chat_template_kwargs' is no variable of a template")
        variables = {"tools": None, "documents": None, **options}
        text = self._tokenizer.get_chat_template(variables.pop("chat_template", None), variables["tools"])
        for name in ("tools", "documents"):
            if not all(isinstance(each, dict) for each in variables[name] or ()):
                raise ValueError(f"{name!r} must be a list of objects")
        if text not in self._templates:
            self._templates[text] = _Template(text, self._date)
        return _Voice(self._templates[text], {**self._tokenizer.special_tokens_map, **variables})


class _Template:
    """A chat template, compiled as transformers does it."""

    def __init__(self, text: str, date: datetime.date | None) -> None:
        from transformers.utils.chat_template_utils import _compile_jinja_template

        self._text = text
        self._environment = _compile_jinja_template(text).environment
        self._own = {} if date is None else {"strftime_now": date.strftime}
        self.render = self._compile(text)

    @cached_property
    def render_copies(self) -> Callable[[_Variables], str]:
        """Renders plain messages; raises an error if the template does more than copy their contents."""
        parsed = self._environment.parse(self._text)
        refuse_to_read_contents(parsed, pinned=bool(self._own))
        return self._compile(parsed)

    def _compile(self, source: Any) -> Callable[[_Variables], str]:
        template = self._environment.from_string(source, globals=self._own)
        # Jinja's own `render` collects these again each time, which takes as long as a short template itself.
        shared = dict(template.globals)

        def render(variables: _Variables) -> str:
            return "".join(
                template.root_render_func(template.new_context({**shared, **variables}, shared=True))
            )

        return render


class _Voice:
    """A chat template and the values of its variables beside the messages."""

    def __init__(self, template: _Template, variables: _Variables) -> None:
        self._template = template
        self._variables = variables
        self._frames: dict[tuple[Any, ...], Frame | None] = {}
        self._last_prompt: tuple[list[Message], str] = ([], "")

    def render(self, messages: list[Message], generation: bool) -> str:
        """The text of a conversation, or of a prompt with the beginning of its answer (`generation`)."""
        return self._template.render(self._all_variables(_readable(messages), generation))

    def render_plain(self, messages: list[Message], generation: bool) -> str:
        """The same for plain messages."""
        roles = (generation, *[message["role"] for message in messages])
        try:
            frame = self._frames[roles]
        except KeyError:
            frame = self._make_frame(*roles)
        if frame is not None:
            return frame.fill([message["content"] for message in messages])
        if not generation:
            return self.render(messages, generation)
        if messages != self._last_prompt[0]:  # pairs of one prompt often follow each other
            self._last_prompt = (messages, self.render(messages, generation))
        return self._last_prompt[1]

    def _all_variables(self, messages: list[Message], generation: bool) -> _Variables:
        return {**self._variables, "messages": messages, "add_generation_prompt": generation}

    def _make_frame(self, generation: bool, *roles: str) -> Frame | None:
        def render(contents: list[str], by: Callable[[_Variables], str] = self._template.render_copies) -> str:
            messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]
            return by(self._all_variables(messages, generation))

        if len(self._frames) >= _MAX_FRAMES:
            self._frames.clear()
        frame = None
        with suppress(Exception):  # the template reads contents, or refuses these roles
            if all(map(str.isidentifier, roles)):  # another text might look like a gap
                frame = Frame(render, len(roles))
                for probe in _PROBES:
                    contents = [probe.format(number) for number in range(len(roles))]
                    if frame.fill(contents) != render(contents, self._template.render):
                        raise AssertionError("the template reads contents, though its analysis says no")
        self._frames[generation, *roles] = frame
        return frame


def _is_plain(message: Message) -> bool:
    """Whether a message is a role and a text that is not blank."""
    content = message.get("content")
    return len(message) == 2 and type(content) is str and bool(content) and not content.isspace()


def _readable(messages: list[Any]) -> list[Message]:
    """The messages as transformers gives them to templates: reasoning under each name that templates read."""
    if all(len(message) == 2 for message in messages):
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
    renderers = [Renderer(tokenizer, moment) for moment in _TWO_MOMENTS]

    def texts(messages: list[Message], options: Options | None) -> Iterator[Texts | None]:
        for render in renderers:
            try:
                yield render(Pair("", messages, messages, messages, options=options))
            except Exception:  # a template may refuse a system message or tools
                yield None

    conversations = ([_USER], [_SYSTEM, _USER])
    return any(
        len(set(texts(messages, options))) > 1
        for messages in conversations
        for options in (None, {"tools": [_TOOL]})
    )
