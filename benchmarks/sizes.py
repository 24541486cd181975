"""Models and pairs of realistic sizes for the speed benchmarks, with random weights and tokens."""

from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import harness

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

SHAPES: dict[str, dict[str, int]] = {
    "1M": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
    | {"num_key_value_heads": 4, "vocab_size": 1024},
    "33M": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8}
    | {"num_key_value_heads": 8, "vocab_size": 12288},
    "135M": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
    | {"num_key_value_heads": 3, "vocab_size": 49152},
    "1.2B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
    | {"num_key_value_heads": 8, "vocab_size": 128256},
}
"""Shapes of Llamas by number of parameters; 135M is that of SmolLM2-135M, 1.2B that of Llama-3.2-1B."""
CPU_SIZES = ("1M", "33M", "135M")
"""Those that the benchmarks measure by default."""


def model(size: str, seed: int = 0, device: str = "cpu", **shape: int) -> "LlamaForCausalLM":
    """A Llama with random weights and tied embeddings; `shape` changes its shape."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = LlamaConfig(**(SHAPES[size] | shape), **tokens, tie_word_embeddings=True)
    with torch.device(device):
        return LlamaForCausalLM(config)


def pairs(count: int, longest: int, vocabulary: int, seed: int = 0, median: int = 60) -> list[dict[str, Any]]:
    """Tokenised pairs of random tokens.

    Lengths are log-normal. The default median is that of the four data sets of docs/results with SmolLM2's
    tokenizer. Prompts and answers have at most `longest / 2` tokens each.
    """
    draw = np.random.default_rng(seed)

    def lengths(spread: float, columns: int) -> Any:
        sizes = np.exp(draw.normal(np.log(median), spread, (count, columns)))
        return np.clip(sizes, 4, longest // 2).astype(int)

    prompts, sides = lengths(0.8, 1), lengths(0.9, 2)

    def ids(length: int) -> list[int]:
        return draw.integers(3, vocabulary, length).tolist()  # type: ignore[no-any-return]

    return [
        {
            "pair_id": str(number),
            "prompt_ids": ids(prompt),
            "chosen_ids": ids(chosen),
            "rejected_ids": ids(rejected),
            "ref_chosen_logps": -3.0 * chosen,
            "ref_rejected_logps": -3.0 * rejected,
        }
        for number, ((prompt,), (chosen, rejected)) in enumerate(zip(prompts, sides, strict=True))
    ]


def tokens(rows: list[dict[str, Any]]) -> int:
    """The number of tokens in both sides of all pairs; each side includes the prompt."""
    return sum(2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)


def gemm_rate(size: str, bf16: bool) -> float:
    """Operations a second of the model's largest matrix product over 2,048 tokens on the CPU, median of 9."""
    import torch

    dtype = torch.bfloat16 if bf16 else torch.float32
    width, inner = SHAPES[size]["hidden_size"], SHAPES[size]["intermediate_size"]
    left, right = torch.randn(2048, width).to(dtype), torch.randn(width, inner).to(dtype)
    seconds = harness.median_seconds(lambda: torch.mm(left, right), 9)
    return 2 * 2048 * width * inner / seconds
