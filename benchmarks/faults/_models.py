"""A small model for the fault bench, made in a moment."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


@cache
def _parts() -> "tuple[LlamaForCausalLM, PreTrainedTokenizerFast]":
    from automixalign.quickstart.tiny_model import build_model, build_tokenizer

    tokenizer = build_tokenizer()
    return build_model(tokenizer, seed=0, hidden_size=16, layers=1, heads=2), tokenizer


def small_model(folder: Path) -> Path:
    """A Llama of some thousand random weights with a token a character and a chat template."""
    model, tokenizer = _parts()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
