"""Tokenise pairs once, for every later stage, exactly as TRL's DPOTrainer would."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from automixalign.data.encode import Encoder
from automixalign.data.pairs import Pair, Turn, text_of
from automixalign.system.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_CHARACTERS = 128
"""No token stands for more of them: a text of so many times `max_length` need not be tokenised to the end."""
_CHUNK, _CHUNK_CHARACTERS = 512, 1 << 20
"""How many pairs are tokenised together at most, and when they are fewer."""

_Texts: TypeAlias = tuple[str, str, str]
"""Prompt, prompt with chosen side, prompt with rejected side."""


class Tokens(NamedTuple):
    """Token ids of a pair; the prompt's are shared by both sides."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    truncated: bool


def check_template(tokenizer: "PreTrainedTokenizerBase", conversational: bool) -> None:
    """Refuse messages for a tokenizer that cannot render them.

    Raises:
        ModelError: the data is conversational, and the tokenizer has no chat template or does without one.
    """
    from transformers import PreTrainedTokenizerBase

    if conversational and not tokenizer.chat_template:
        raise ModelError(
            "the data is conversational, but the base model's tokenizer has no chat template; use a chat "
            "model, or plain-text data"
        )
    own = type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template
    if conversational and own:
        raise ModelError(
            f"the data is conversational, and a {type(tokenizer).__name__} renders messages by its own rules "
            "instead of a chat template; uninstall the package it comes from, or use plain-text data"
        )


def tokenize(
    tokenizer: "PreTrainedTokenizerBase", pairs: Iterable[Pair], max_length: int
) -> Iterator[list[tuple[Pair, Tokens | None]]]:
    """Render and tokenise pairs; sides are cut at `max_length` tokens of prompt and side together.

    The completion starts where prompt and prompt + side diverge, as in TRL: usually after the prompt, earlier
    where tokens merge across the boundary. Plain text gets the end-of-sequence token appended.

    Args:
        pairs: all of them text, or all messages.

    Yields:
        Some of the pairs at a time, in their order, each with its ids, or None when the prompt leaves no room
        for an answer.

    Raises:
        DataError: the chat template refuses the messages.
    """
    encoder = Encoder(tokenizer)
    waiting: deque[tuple[list[Pair], Future[list[Tokens | None]]]] = deque()
    # Tokenizers work outside of Python: on several chunks at a time, while the next is read and rendered.
    with ThreadPoolExecutor(encoder.threads) as pool:
        for chunk in _chunks(pairs):
            texts = _texts(tokenizer, chunk, _CHARACTERS * max_length)
            plain = isinstance(chunk[0].prompt, str)
            waiting.append((chunk, pool.submit(_tokens, encoder, texts, plain, max_length)))
            if len(waiting) > encoder.threads:
                yield _done(*waiting.popleft())
        while waiting:
            yield _done(*waiting.popleft())


def _chunks(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    chunk: list[Pair] = []
    size = 0
    for pair in pairs:
        chunk.append(pair)
        size += sum(len(text_of(turn)) for turn in (pair.prompt, pair.chosen, pair.rejected))
        if len(chunk) == _CHUNK or size >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _done(chunk: list[Pair], found: Future[list[Tokens | None]]) -> list[tuple[Pair, Tokens | None]]:
    return list(zip(chunk, found.result(), strict=True))


def _texts(tokenizer: "PreTrainedTokenizerBase", pairs: list[Pair], most: int) -> list[_Texts | None]:
    """What is tokenised of each pair, as far as it can matter: at most so many characters of each part."""
    short = [
        pair._replace(chosen=_first(pair.chosen, most), rejected=_first(pair.rejected, most))
        for pair in pairs
        if len(text_of(pair.prompt)) <= most
    ]
    render = _plain if isinstance(pairs[0].prompt, str) else _rendered
    try:
        texts = iter(render(tokenizer, short))
    except Exception:  # a template is a program of the model's, such as one without system messages
        for pair in short:
            _check_rendering(tokenizer, pair)
        raise
    return [next(texts) if len(text_of(pair.prompt)) <= most else None for pair in pairs]


def _first(side: Turn, characters: int) -> Turn:
    if isinstance(side, str):
        return side[:characters]
    return [{**message, "content": message["content"][:characters]} for message in side]


def _plain(tokenizer: "PreTrainedTokenizerBase", pairs: list[Pair]) -> list[_Texts]:
    end = tokenizer.eos_token

    def whole(prompt: Turn, side: Turn) -> str:
        return f"{prompt}{side}" if str(side).endswith(end) else f"{prompt}{side}{end}"

    return [
        (str(pair.prompt), whole(pair.prompt, pair.chosen), whole(pair.prompt, pair.rejected)) for pair in pairs
    ]


def _rendered(tokenizer: "PreTrainedTokenizerBase", pairs: list[Pair]) -> list[_Texts]:
    if not pairs:
        return []
    prompts = tokenizer.apply_chat_template(
        [pair.prompt for pair in pairs], tokenize=False, add_generation_prompt=True
    )
    whole = [[*pair.prompt, *side] for pair in pairs for side in (pair.chosen, pair.rejected)]
    sides = iter(tokenizer.apply_chat_template(whole, tokenize=False))
    return [(prompt, next(sides), next(sides)) for prompt in prompts]


def _check_rendering(tokenizer: "PreTrainedTokenizerBase", pair: Pair) -> None:
    try:
        _rendered(tokenizer, [pair])
    except Exception as error:
        shown = f"{text_of(pair.prompt)!r:.80}"
        raise DataError(f"the chat template refuses the prompt {shown}: {error}") from error


def _tokens(encoder: Encoder, texts: list[_Texts | None], plain: bool, max_length: int) -> list[Tokens | None]:
    ids = iter(encoder([text for each in texts if each for text in each], special_tokens=plain))
    return [_cut(next(ids), next(ids), next(ids), max_length) if each else None for each in texts]


def _cut(prompt: list[int], chosen: list[int], rejected: list[int], max_length: int) -> Tokens | None:
    start = min(_common_prefix(prompt, chosen), _common_prefix(prompt, rejected))
    if start == 0 or start >= max_length:
        return None
    truncated = max(len(chosen), len(rejected)) > max_length
    return Tokens(prompt[:start], chosen[start:max_length], rejected[start:max_length], truncated)


def _common_prefix(left: list[int], right: list[int]) -> int:
    if right[: len(left)] == left:
        return len(left)
    pairs = enumerate(zip(left, right, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(left), len(right)))
