"""What a training needs, as small as it can be: a model of some thousand weights and two tasks of 30 pairs."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from automixalign import caches
from automixalign.data.prepare import prepare_data
from automixalign.data.split import SPLITS
from automixalign.scoring import write_reference_logps
from automixalign.settings import DataSettings, ScoringSettings

TASKS = ("format", "refusal")


def write_base_model(folder: Path) -> None:
    """A Llama of random weights, with a tokenizer that has a token a character and a chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from automixalign.tiny_model import build_tokenizer

    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_data(base_model: Path, folder: Path) -> None:
    """The prepared splits of the two tasks."""
    settings = {
        "seed": 0,
        "tasks": [{"name": name, "source": f"synthetic:{name}", "limit": 30} for name in TASKS],
        "split": {"test": 0.3},
        "max_length": 64,
        "fingerprints": ["", ""],
    }
    prepare_data(DataSettings.model_validate(settings), base_model, folder)


def write_references(data: Path, base_model: Path, folder: Path) -> None:
    """Their reference log-probabilities."""
    settings = ScoringSettings(seed=0, batch_size=16, precision="fp32")
    write_reference_logps(settings, data, base_model, folder)


def write_losses(data: Path, references: Path, folder: Path) -> list[Path]:
    """Made-up specialist losses, some above and some below ln 2; a folder a task, not in the tasks' order."""
    generator = np.random.default_rng(0)
    for task in TASKS:
        tables = {}
        for split in SPLITS:
            scores = caches.read_cache(references / task, split)
            losses = generator.uniform(0.4, 0.8, size=len(scores))
            tables[split] = scores.append_column(caches.LOSS, pa.array(losses))
        caches.write_cache(folder / task, task, tables, data)
    return [folder / task for task in reversed(TASKS)]
