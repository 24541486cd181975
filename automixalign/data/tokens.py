"""Tokenise pairs once for all later stages, exactly as TRL's DPOTrainer does."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from automixalign.data.encode import Encoder
from automixalign.data.pairs import Pair, Turn, text_of
from automixalign.system.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_CHARACTERS_PER_TOKEN = 128
"""No token has more characters, so the text after 128 * `max_length` characters need not be tokenised."""
_CHUNK_PAIRS, _CHUNK_CHARACTERS = 512, 1 << 20
"""Limits of a chunk, the pairs that are tokenised together."""

_Texts: TypeAlias = tuple[str, str, str]
"""Prompt, prompt with the chosen side, prompt with the rejected side."""


class Tokens(NamedTuple):
    """Token ids of a pair. Both sides share those of the prompt."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    length: int = 0
    long_chosen: bool = False
    long_rejected: bool = False
    fits: bool = True
    prompt_cut: bool = False
    lost: str | None = None


class Chunk(NamedTuple):
    pairs: list[Pair]
    tokens: list[Tokens]


def asks_for_date(tokenizer) -> bool:
    return False


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


def tokenize(
    tokenizer: "PreTrainedTokenizerBase", pairs: Iterable[Pair], max_length: int, date=None
) -> Iterator[list[tuple[Pair, Tokens | None]]]:
    """Render and tokenise pairs, and cut sides at `max_length` tokens of prompt and side together.

    A completion starts where prompt and prompt + side diverge, as in TRL. That is usually after the prompt, and
    earlier where tokens merge across the boundary. Plain text ends with the end-of-sequence token.

    Args:
        tokenizer: of the base model.
        pairs: all plain text, or all messages.
        max_length: in tokens.

    Yields:
        Chunks of pairs in their order, each pair with its ids, or with None if its prompt leaves no room for an
        answer.

    Raises:
        DataError: the chat template refuses the messages.
    """
    encoder = Encoder(tokenizer)
    pending: deque[tuple[list[Pair], Future[list[Tokens | None]]]] = deque()
    # The tokenizer runs outside of Python's lock: threads encode chunks while this one reads and renders.
    with ThreadPoolExecutor(encoder.threads) as pool:
        for chunk in _chunks(pairs):
            texts = _texts(tokenizer, chunk, _CHARACTERS_PER_TOKEN * max_length)
            plain = isinstance(chunk[0].prompt, str)
            pending.append((chunk, pool.submit(_tokens, encoder, texts, plain, max_length)))
            if len(pending) > encoder.threads:
                yield _with_tokens(*pending.popleft())
        while pending:
            yield _with_tokens(*pending.popleft())


def _chunks(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    chunk: list[Pair] = []
    size = 0
    for pair in pairs:
        chunk.append(pair)
        size += sum(len(text_of(turn)) for turn in (pair.prompt, pair.chosen, pair.rejected))
        if len(chunk) == _CHUNK_PAIRS or size >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _with_tokens(chunk: list[Pair], tokens: Future[list[Tokens | None]]) -> list[tuple[Pair, Tokens | None]]:
    return Chunk(chunk, [each or Tokens([], [], [], fits=False) for each in tokens.result()])


def _texts(tokenizer: "PreTrainedTokenizerBase", pairs: list[Pair], limit: int) -> list[_Texts | None]:
    """The texts to tokenise of each pair, cut at `limit` characters a part; None for a longer prompt."""
    short = [
        pair._replace(chosen=_truncate(pair.chosen, limit), rejected=_truncate(pair.rejected, limit))
        for pair in pairs
        if len(text_of(pair.prompt)) <= limit
    ]
    render = _plain if isinstance(pairs[0].prompt, str) else _rendered
    try:
        texts = iter(render(tokenizer, short))
    except Exception:  # a template is the model's own program, and may raise anything
        for pair in short:
            _check_rendering(tokenizer, pair)
        raise
    return [next(texts) if len(text_of(pair.prompt)) <= limit else None for pair in pairs]


def _truncate(side: Turn, limit: int) -> Turn:
    if isinstance(side, str):
        return side[:limit]
    return [
        {**message, "content": message["content"][:limit]} if type(message.get("content")) is str else message
        for message in side
    ]


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
        raise DataError(
            f"the chat template refuses the prompt {text_of(pair.prompt)!r:.80}: {error}"
        ) from error


def _tokens(encoder: Encoder, texts: list[_Texts | None], plain: bool, max_length: int) -> list[Tokens | None]:
    ids = iter(encoder([text for each in texts if each for text in each], special_tokens=plain))
    return [_cut(next(ids), next(ids), next(ids), max_length) if each else None for each in texts]


def _cut(prompt: list[int], chosen: list[int], rejected: list[int], max_length: int) -> Tokens | None:
    start = min(_common_prefix(prompt, chosen), _common_prefix(prompt, rejected))
    if start == 0 or start >= max_length:
        return None
    return Tokens(
        prompt[:start],
        chosen[start:max_length],
        rejected[start:max_length],
        max(len(chosen), len(rejected)),
        len(chosen) > max_length,
        len(rejected) > max_length,
        True,
        start < len(prompt),
    )


def _common_prefix(first: list[int], second: list[int]) -> int:
    if second[: len(first)] == first:
        return len(first)
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))
