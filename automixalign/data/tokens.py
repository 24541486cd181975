"""Tokenise a pair once, for every later stage, exactly as TRL's DPOTrainer would."""

from typing import TYPE_CHECKING, NamedTuple

from automixalign.data.pairs import Pair, Turn, text_of
from automixalign.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_CHARACTERS = 128
"""No token stands for more of them: a text of so many times `max_length` need not be tokenised to the end."""


class Tokens(NamedTuple):
    """Token ids of a pair; the prompt's are shared by both sides."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    truncated: bool


def check_template(tokenizer: "PreTrainedTokenizerBase", pair: Pair) -> None:
    """Refuse messages for a tokenizer that cannot render them.

    Raises:
        ModelError: the data is conversational and the tokenizer has no chat template.
    """
    if not isinstance(pair.prompt, str) and not tokenizer.chat_template:
        raise ModelError(
            "the data is conversational, but the base model's tokenizer has no chat template; use a chat "
            "model, or plain-text data"
        )


def tokenize(tokenizer: "PreTrainedTokenizerBase", pair: Pair, max_length: int) -> Tokens | None:
    """Render and tokenise a pair; sides are cut at `max_length` tokens of prompt and side together.

    The completion starts where prompt and prompt + side diverge, as in TRL: usually after the prompt, earlier
    where tokens merge across the boundary. Plain text gets the end-of-sequence token appended.

    Returns:
        The ids, or None when the prompt leaves no room for an answer.

    Raises:
        DataError: the chat template refuses the messages.
    """
    most = _CHARACTERS * max_length
    if len(text_of(pair.prompt)) > most:
        return None
    prompt = _render(tokenizer, pair.prompt, None)
    chosen = _render(tokenizer, pair.prompt, _first(pair.chosen, most))
    rejected = _render(tokenizer, pair.prompt, _first(pair.rejected, most))
    start = min(_common_prefix(prompt, chosen), _common_prefix(prompt, rejected))
    if start == 0 or start >= max_length:
        return None
    truncated = max(len(chosen), len(rejected)) > max_length
    return Tokens(prompt[:start], chosen[start:max_length], rejected[start:max_length], truncated)


def _first(side: Turn, characters: int) -> Turn:
    """The side as far as it can matter."""
    if isinstance(side, str):
        return side[:characters]
    return [{**message, "content": message["content"][:characters]} for message in side]


def _render(tokenizer: "PreTrainedTokenizerBase", prompt: Turn, side: Turn | None) -> list[int]:
    if isinstance(prompt, str):
        text = prompt
        if isinstance(side, str):
            text += side if side.endswith(tokenizer.eos_token) else side + tokenizer.eos_token
        return list(tokenizer(text)["input_ids"])
    messages = prompt + (side if isinstance(side, list) else [])
    try:
        rendered = tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=side is None, return_dict=True
        )
    except Exception as error:  # a template is a program of the model's, such as one without system messages
        raise DataError(f"the chat template refuses the prompt {text_of(prompt)!r:.80}: {error}") from error
    return list(rendered["input_ids"])


def _common_prefix(left: list[int], right: list[int]) -> int:
    for place, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return place
    return min(len(left), len(right))
