"""Token ids of many texts at once: exactly those that the tokenizer gives each of them alone, and sooner."""

import json
import re
from typing import TYPE_CHECKING, Any

from automixalign.system.processors import available_processors

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_ANYWHERE = {
    "BertPreTokenizer",
    "ByteLevel",
    "CharDelimiterSplit",
    "Digits",
    "Punctuation",
    "Split",
    "UnicodeScripts",
    "Whitespace",
    "WhitespaceSplit",
}
"""Pre-tokenizers that look at a stretch of text alone, and not at where it stands in the whole."""
_THREADS = 4
"""More would wait for what Python does between; each holds the token ids of a chunk."""


class Encoder:
    """Of one tokenizer; `threads` says how many may call it at a time."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._backend = _backend(tokenizer)
        added = _added(self._backend)
        self._cuts = re.compile(f"({'|'.join(map(re.escape, added))})") if added else None
        self._added = {token: [number] for token, number in added.items()}
        self.threads = min(_THREADS, available_processors()) if self._backend else 1

    def __call__(self, texts: list[str], special_tokens: bool) -> list[list[int]]:
        """The ids of each text; `special_tokens` are those that the tokenizer itself puts around a text."""
        if self._backend is None:
            found = self._tokenizer(texts, add_special_tokens=special_tokens)["input_ids"] if texts else []
            return [list(ids) for ids in found]
        if self._cuts is None or special_tokens:
            return _ids(self._backend, texts, special_tokens)
        # Added tokens are cut out of a text before anything else is done, and what stands between them is then
        # tokenised by itself: so that which prompts and templates repeat is tokenised once.
        cut = [self._cuts.split(text) for text in texts]
        pieces = list({piece: None for parts in cut for piece in parts[::2] if piece})
        known = dict(zip(pieces, _ids(self._backend, pieces, False), strict=True))
        known |= {"": [], **self._added}
        return [[number for piece in parts for number in known[piece]] for parts in cut]


def _ids(backend: "Tokenizer", texts: list[str], special_tokens: bool) -> list[list[int]]:
    return [found.ids for found in backend.encode_batch_fast(texts, add_special_tokens=special_tokens)]


def _backend(tokenizer: "PreTrainedTokenizerBase") -> "Tokenizer | None":
    """The tokenizer in Rust, set as it is for a call; None if it is not all there is."""
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


def _added(backend: "Tokenizer | None") -> dict[str, int]:
    """Where a text can be cut, the longest first; nothing where what stands between would then change."""
    if backend is None or backend.encode_special_tokens:
        return {}
    added = [
        (token.content, number, token.lstrip or token.rstrip or token.single_word)
        for number, token in backend.get_added_tokens_decoder().items()
        if not token.normalized  # the others are looked for later, in the pieces
    ]
    if any(looks_around for _, _, looks_around in added) or not _stands_anywhere(_state(backend.pre_tokenizer)):
        return {}
    added.sort(key=lambda each: len(each[0]), reverse=True)
    return {content: number for content, number, _ in added if content}


def _state(part: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(part.__getstate__()) if part is not None else {"type": "Split"}
    return found


def _stands_anywhere(state: dict[str, Any]) -> bool:
    if state["type"] == "Sequence":
        return all(map(_stands_anywhere, state["pretokenizers"]))
    return state["type"] in _ANYWHERE or state.get("prepend_scheme") in ("always", "never")
