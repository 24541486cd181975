"""Tokenise pairs once for all later stages, exactly as TRL's DPOTrainer does."""

import datetime
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from automixalign.data.pairs import Options, Pair, Turn, flat, text_of
from automixalign.data.tokenization.encode import Encoder
from automixalign.data.tokenization.lost_text import lost_text
from automixalign.data.tokenization.rendering import Renderer, Texts
from automixalign.system.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_CHARACTERS_PER_TOKEN = 128
"""No token has more characters, so the text after 128 * `max_length` characters need not be tokenised."""
_CHUNK_PAIRS, _CHUNK_CHARACTERS = 512, 1 << 21
"""Limits of a chunk, the pairs that are tokenised together."""
_MAX_REFUSED = 10


class Tokens(NamedTuple):
    """Token ids of a pair. Both sides share those of the prompt."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    long_chosen: bool
    """Whether the side was cut at `max_length`."""
    long_rejected: bool
    fits: bool
    """Whether the prompt leaves room for an answer, and some of it is left. If not, there are no ids."""
    prompt_cut: bool
    """Whether the end of the tokenised prompt is missing, because prompt + side go on with other tokens."""
    length: int
    """The tokens of the prompt and the longer side before the cut. What follows 128 * `max_length` characters
    does not count."""
    lost: str | None
    """The name of the first part of the conversation that the chat template leaves out."""
    generation: list[int] | None
    """Ids of the whole prompt, from which an answer is generated, where they are not those of `prompt`."""


class Chunk(NamedTuple):
    """Some pairs, and the tokens of each."""

    pairs: list[Pair]
    tokens: list[Tokens]


_Render: TypeAlias = Callable[[Pair], Texts]


def check_template(tokenizer: "PreTrainedTokenizerBase", conversational: bool) -> None:
    """Refuse messages for a tokenizer that cannot render them by a chat template.

    Raises:
        ModelError: the data is conversational, and the tokenizer has no chat template or ignores it.
    """
    from transformers import PreTrainedTokenizerBase

    if conversational and not tokenizer.chat_template:
        raise ModelError(
            "the data is conversational, but the base model's tokenizer has no chat template; use a chat "
            "model, or plain-text data"
        )
    overridden = type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template
    if conversational and overridden:
        raise ModelError(
            f"the data is conversational, and a {type(tokenizer).__name__} renders messages by its own rules "
            "instead of a chat template; uninstall the package it comes from, or use plain-text data"
        )


class PairTokenizer:
    """Renders and tokenises pairs, and cuts sides at `max_length` tokens of prompt and side together.

    A completion starts where prompt and prompt + side diverge, as in TRL. That is usually after the prompt, and
    earlier where tokens merge across the boundary. Plain text ends with the end-of-sequence token.

    Args:
        tokenizer: of the base model.
        max_length: in tokens.
        date: today's date for a chat template that asks for it.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", max_length: int, date: datetime.date | None = None
    ) -> None:
        self._max_length = max_length
        self._end: int = tokenizer.eos_token_id
        self._encode = Encoder(tokenizer)
        self._render_messages, self._render_text = Renderer(tokenizer, date), _plain_renderer(tokenizer)

    def __call__(self, pairs: list[Pair]) -> list[Tokens]:
        """The tokens of some pairs, which are all plain text, or all messages.

        Raises:
            DataError: the chat template refuses pairs; up to ten are named.
        """
        plain = isinstance(pairs[0].prompt, str)
        render = self._render_text if plain else self._render_messages
        rendered, lost = [], []
        refused: list[tuple[Pair, Exception]] = []
        limit = _CHARACTERS_PER_TOKEN * (self._max_length + 1)
        for pair in pairs:
            try:
                texts = render(pair)
            except Exception as error:  # a template is the model's own program, and may raise anything
                refused.append((pair, error))
                if len(refused) == _MAX_REFUSED:
                    break
                continue
            lost.append(None if plain else lost_text(pair, texts))
            rendered += [text[:limit] for text in texts]
        if refused:
            raise _refusal(refused, render)
        ids = iter(self._encode(rendered, special_tokens=plain))
        end = self._end if plain else None
        return [_cut(next(ids), next(ids), next(ids), self._max_length, each, end) for each in lost]


def tokenize(
    tokenizer: "PreTrainedTokenizerBase",
    pairs: Iterable[Pair],
    max_length: int,
    date: datetime.date | None = None,
) -> Iterator[Chunk]:
    """Tokenise any number of pairs, in their order; for the arguments see `PairTokenizer`."""
    encode = PairTokenizer(tokenizer, max_length, date)
    for chunk in chunks_of(pairs):
        yield Chunk(chunk, encode(chunk))


def chunks_of(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    """The pairs in chunks that are tokenised together."""
    chunk: list[Pair] = []
    size = 0
    for pair in pairs:
        chunk.append(pair)
        size += sum(map(len, (flat(pair.prompt), flat(pair.chosen), flat(pair.rejected))))
        if len(chunk) == _CHUNK_PAIRS or size >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _plain_renderer(tokenizer: "PreTrainedTokenizerBase") -> _Render:
    end = tokenizer.eos_token

    def render(pair: Pair) -> Texts:
        ends = ("" if str(side).endswith(end) else end for side in (pair.chosen, pair.rejected))
        chosen, rejected = (f"{pair.prompt}{side}{next(ends)}" for side in (pair.chosen, pair.rejected))
        return Texts(str(pair.prompt), chosen, rejected)

    return render


def _refusal(refused: list[tuple[Pair, Exception]], render: _Render) -> DataError:
    pair, _ = refused[0]
    others = [message for message in pair.prompt if isinstance(message, dict) and message["role"] != "system"]
    advice = "change these rows or leave them out with 'where'"
    with suppress(Exception):
        if others and len(others) < len(pair.prompt):
            render(pair._replace(prompt=others))
            advice = "it takes no system message; put such text at the beginning of the user's message"
    count = "a pair" if len(refused) == 1 else f"{len(refused)} pairs"
    lines = (f"\n  {text_of(pair.prompt)!r:.80}: {error}" for pair, error in refused)
    return DataError(f"the chat template refuses {count}; {advice}{''.join(lines)}")


def prompt_ids(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Turn,
    options: Options | None = None,
    date: datetime.date | None = None,
) -> list[int]:
    """The ids of a prompt alone, from which a model answers: those from which `evaluate` generates.

    Args:
        tokenizer: of the model.
        prompt: text, or messages.
        options: what the chat template gets beside the messages.
        date: today's date for a chat template that asks for it.

    Raises:
        ModelError: the prompt is messages, and the tokenizer has no chat template.
        DataError: the chat template refuses the messages.
    """
    plain = isinstance(prompt, str)
    if not plain and not tokenizer.chat_template:
        raise ModelError("the model has no chat template, so it takes no messages, only plain text")
    check_template(tokenizer, not plain)
    end = tokenizer.eos_token_id if plain else None
    try:
        text = str(prompt) if plain else Renderer(tokenizer, date).prompt(prompt, options)
    except Exception as error:  # a template is the model's own program, and may raise anything
        raise DataError(f"the chat template refuses {text_of(prompt)!r:.80}: {error}") from error
    (ids,) = Encoder(tokenizer)([text], special_tokens=plain)
    return _without_end(ids, end)


def _without_end(prompt: list[int], end: int | None) -> list[int]:
    """Some tokenizers end every plain text with the end-of-sequence token; an answer does not follow it."""
    return prompt[:-1] if end is not None and prompt[-1:] == [end] else prompt


def _cut(
    prompt: list[int],
    chosen: list[int],
    rejected: list[int],
    max_length: int,
    lost: str | None,
    end: int | None,
) -> Tokens:
    start = min(_common_prefix(prompt, chosen), _common_prefix(prompt, rejected))
    fits = 0 < start < max_length
    stop = max_length if fits else start
    return Tokens(
        prompt=prompt[:start] if fits else [],
        chosen=chosen[start:stop],
        rejected=rejected[start:stop],
        long_chosen=len(chosen) > max_length,
        long_rejected=len(rejected) > max_length,
        fits=fits,
        prompt_cut=start < len(prompt),
        length=max(len(chosen), len(rejected)),
        lost=lost,
        generation=whole if fits and len(whole := _without_end(prompt, end)) > start else None,
    )


def _common_prefix(first: list[int], second: list[int]) -> int:
    if second[: len(first)] == first:
        return len(first)
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))
