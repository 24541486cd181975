"""What `automixalign.data.tokens` does, in the plainest way: pair by pair, by transformers."""

from itertools import takewhile
from typing import Any

from automixalign.data.pairs import Pair, Turn
from automixalign.data.tokens import Tokens


def tokenize(tokenizer: Any, pair: Pair, max_length: int) -> Tokens:
    """The ids of a pair, cut at `max_length`."""
    prompt = _ids(tokenizer, pair, None)
    chosen, rejected = (_ids(tokenizer, pair, side) for side in (pair.chosen, pair.rejected))
    start = min(_common(prompt, chosen), _common(prompt, rejected))
    fits = 0 < start < max_length
    return Tokens(
        prompt=prompt[:start] if fits else [],
        chosen=chosen[start:max_length] if fits else [],
        rejected=rejected[start:max_length] if fits else [],
        long_chosen=len(chosen) > max_length,
        long_rejected=len(rejected) > max_length,
        fits=fits,
        prompt_cut=start < len(prompt),
        length=max(len(chosen), len(rejected)),
        lost=None,
        generation=prompt if fits and start < len(prompt) else None,
    )


def _ids(tokenizer: Any, pair: Pair, side: Turn | None) -> list[int]:
    if isinstance(pair.prompt, str):
        end = "" if side is None or str(side).endswith(tokenizer.eos_token) else tokenizer.eos_token
        return list(tokenizer(f"{pair.prompt}{side or ''}{end}")["input_ids"])
    options = pair.options or {}
    ids = tokenizer.apply_chat_template(
        [*pair.prompt, *(side or [])],
        tools=options.get("tools"),
        add_generation_prompt=side is None,
        return_dict=True,
        **options.get("chat_template_kwargs", {}),
    )
    return list(ids["input_ids"])


def _common(left: list[int], right: list[int]) -> int:
    return sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(left, right, strict=False)))
