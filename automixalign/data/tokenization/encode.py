"""Encode many texts at once, faster than one by one, to exactly the same token ids."""

import json
import os
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_CONTEXT_FREE = {
    *("BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "Punctuation"),
    *("Split", "UnicodeScripts", "Whitespace", "WhitespaceSplit"),
}
"""Pre-tokenizers that treat a piece of text alike wherever it is in the whole text."""


class Encoder:
    """Encodes texts with one tokenizer."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._backend = _rust_tokenizer(tokenizer)
        added = _separable_tokens(self._backend)
        self._separators = re.compile(f"({'|'.join(map(re.escape, added))})") if added else None
        self._added = {token: [number] for token, number in added.items()}
        # Its threads would do the work of other processes, and cannot be forked.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    def __call__(self, texts: list[str], special_tokens: bool) -> list[list[int]]:
        """The token ids of each text.

        Args:
            texts: any number of texts.
            special_tokens: whether the tokenizer puts its own special tokens around each text.
        """
        if self._backend is None:
            ids_of_texts = (
                self._tokenizer(texts, add_special_tokens=special_tokens)["input_ids"] if texts else []
            )
            return [list(ids) for ids in ids_of_texts]
        if self._separators is None or special_tokens:
            return _encode(self._backend, texts, special_tokens)
        # A tokenizer first cuts a text at added tokens, and encodes each piece by itself. So a piece that many
        # texts share, from prompts and templates, needs to be encoded only once.
        pieces_of_texts = [self._separators.split(text) for text in texts]
        pieces = list({piece: None for parts in pieces_of_texts for piece in parts[::2] if piece})
        ids_of = dict(zip(pieces, _encode(self._backend, pieces, False), strict=True))
        ids_of |= {"": [], **self._added}
        return [_concatenate(map(ids_of.__getitem__, parts)) for parts in pieces_of_texts]


def _concatenate(parts: Iterable[list[int]]) -> list[int]:
    result: list[int] = []
    for part in parts:
        result += part
    return result


def _encode(backend: "Tokenizer", texts: list[str], special_tokens: bool) -> list[list[int]]:
    encodings = backend.encode_batch_fast(texts, add_special_tokens=special_tokens)
    return [encoding.ids for encoding in encodings]


def _rust_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> "Tokenizer | None":
    """The tokenizer in Rust, set up as for a call; None if a call also runs other code."""
    from transformers import PreTrainedTokenizerFast

    kind = type(tokenizer)
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or any(
        getattr(kind, name) is not getattr(PreTrainedTokenizerFast, name)
        for name in ("__call__", "_encode_plus")
    ):
        return None
    backend: Tokenizer = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return backend


def _separable_tokens(backend: "Tokenizer | None") -> dict[str, int]:
    """The added tokens at which a text can be cut without a change of its ids, the longest token first."""
    if backend is None or backend.encode_special_tokens:
        return {}
    added = [
        (token.content, number, token.lstrip or token.rstrip or token.single_word)
        for number, token in backend.get_added_tokens_decoder().items()
        if not token.normalized  # the tokenizer looks for normalized tokens later, inside the pieces
    ]
    if any(looks_around for _, _, looks_around in added) or not _is_context_free(_state(backend.pre_tokenizer)):
        return {}
    added.sort(key=lambda token: len(token[0]), reverse=True)
    return {content: number for content, number, _ in added if content}


def _state(pre_tokenizer: Any) -> dict[str, Any]:
    state: dict[str, Any] = (
        json.loads(pre_tokenizer.__getstate__()) if pre_tokenizer is not None else {"type": "Split"}
    )
    return state


def _is_context_free(state: dict[str, Any]) -> bool:
    if state["type"] == "Sequence":
        return all(map(_is_context_free, state["pretokenizers"]))
    return state["type"] in _CONTEXT_FREE or state.get("prepend_scheme") in ("always", "never")
