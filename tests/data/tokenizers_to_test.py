"""Small tokenizers with the properties that matter to the encoder."""

from collections.abc import Callable
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_WORDS = "the answer is: blue. The answer is: black. user: hi no: yes x y xx <|> </> <s"


def small_bpe(
    *added: AddedToken, pre: Any = None, normalizer: Any = None, **options: Any
) -> PreTrainedTokenizerFast:
    """A small BPE with a beginning-of-sequence token and `added` tokens."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre or pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer:
        backend.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([_WORDS] * 9, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(list(added))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>", **options
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def merging_bpe() -> PreTrainedTokenizerFast:
    """A BPE without word boundaries, so that tokens merge across prompt and side."""
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    backend.train_from_iterator(["the answer is: blue. the answer is: black. user: hi no: yes"] * 9, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    # The generation prompt ends with a blank, so prompt and answer do not begin with it.
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return tokenizer


SEPARABLE: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "bytes": small_bpe,
    "one token begins another": lambda: small_bpe(
        AddedToken("<|user|>x", normalized=False), AddedToken("<|user", normalized=False)
    ),
    "searched after the normalizer": lambda: small_bpe(
        AddedToken("THE", normalized=True), normalizer=normalizers.Lowercase()
    ),
    "a blank before every piece": lambda: small_bpe(pre=pre_tokenizers.Metaspace(prepend_scheme="always")),
    "several pre-tokenizers": lambda: small_bpe(
        pre=pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel()])
    ),
}
"""The encoder may cut texts at the added tokens of these."""
INSEPARABLE: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "takes the blanks before it": lambda: small_bpe(AddedToken("yes", lstrip=True, normalized=False)),
    "takes the blanks after it": lambda: small_bpe(AddedToken("yes", rstrip=True, normalized=False)),
    "whole words only": lambda: small_bpe(AddedToken("yes", single_word=True, normalized=False)),
    "a blank before the first piece": lambda: small_bpe(pre=pre_tokenizers.Metaspace(prepend_scheme="first")),
    "special tokens as text": lambda: small_bpe(split_special_tokens=True),
}
"""For these, a cut would change the ids."""
