"""Rotary positions that depend on the row's length: a row has the same numbers in every batch."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Phi3Config,
    Phi3ForCausalLM,
)

from automixalign.data.store import IDS
from automixalign.models.generate import Decoding, generate
from automixalign.models.load import load_full_model, load_tokenizer
from automixalign.models.rope import depends_on_length
from automixalign.scoring.scorer import Scorer
from automixalign.storage import files
from benchmarks import tiny

WINDOW = 21
"""Between the lengths of a pair of the tiny task `format`."""
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "factor": 4.0,
    "short_factor": [1.0] * 4,
    "long_factor": [1.0, 2.0, 4.0, 8.0],
    "original_max_position_embeddings": WINDOW,
}
DEFAULT = {"rope_type": "default", "rope_theta": 100.0}


def write_model(folder: Path, kind: str) -> Path:
    """A tiny model with a first window of `WINDOW` tokens, in which positions count."""
    tiny.write_base_model(folder)
    size = len(load_tokenizer(folder))
    if kind == "gemma3":
        shape = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
        layers: dict[str, Any] = {
            "num_hidden_layers": 2,
            "head_dim": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {"sliding_attention": DEFAULT, "full_attention": DYNAMIC},
        }
        torch.manual_seed(0)
        config = Gemma3TextConfig(
            vocab_size=size, max_position_embeddings=WINDOW, initializer_range=0.5, **shape, **layers
        )
        Gemma3ForCausalLM(config).save_pretrained(folder)
        return folder
    rope, positions = {"dynamic": (DYNAMIC, WINDOW), "longrope": (LONGROPE, 4 * WINDOW)}[kind]
    tiny.llama(
        vocab_size=size, rope_parameters=rope, max_position_embeddings=positions, initializer_range=0.5
    ).save_pretrained(folder)
    return folder


def logp_alone(folder: Path, prompt: list[int], answer: list[int]) -> float:
    """By transformers, in a model that has seen nothing before."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return float(logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum())


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "gemma3"])
def test_a_row_has_the_numbers_that_it_has_alone(kind: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", kind)
    generator = np.random.default_rng(0)
    rows = [
        [generator.integers(10, 60, size=length).tolist() for length in lengths]
        for lengths in [(5, 4, 40), (8, 30, 9), (6, 50, 20), (4, 3, 2), (20, 1, 5)]
    ]
    columns = dict(zip(IDS, [list("abcde"), *zip(*rows, strict=True)], strict=True))
    pairs = pa.table({name: pa.array(column) for name, column in columns.items()})
    alone = [[logp_alone(folder, prompt, side) for side in sides] for prompt, *sides in rows]
    model = load_full_model(folder)
    for batch_size in (10, 4, 2, 10):
        scores = np.stack(Scorer(model, batch_size, "fp32").logps(pairs), 1)
        assert np.abs(scores - np.array(alone)).max() < 1e-4, batch_size


@pytest.mark.parametrize("options", [{}, {"lora": {"rank": 2}}])
def test_the_first_loss_is_ln_2(options: dict[str, Any], tmp_path: Path) -> None:
    """The batches of the training are not those of the reference log-probabilities."""
    base, data, logps = write_model(tmp_path / "model", "dynamic"), tmp_path / "data", tmp_path / "logps"
    rows = [
        {"prompt": f"{n}:", "chosen": f" {n}" * (n % 8 + 1), "rejected": f" {n}." * (n % 5 + 1)}
        for n in range(30)
    ]
    tiny.prepare_rows(rows, base, data, 100)
    tiny.write_references(data, base, logps)
    training = tiny.specialist_training(tmp_path, batch_size=16, micro_batch_size=2, **options)
    inputs = {"task": "task", "base_model": base, "data": data, "reference_logps": logps}
    training.model_copy(update=inputs).run(tmp_path)
    first = files.read_jsonl(tmp_path / "trajectory.jsonl")[0]
    assert first["loss"]["task"] == pytest.approx(math.log(2), abs=1e-5)


def test_generation_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "dynamic")
    prompts = [list(range(10, 40)), list(range(10, 18))]
    model = load_full_model(folder)
    longest = max(map(len, prompts))
    padded = torch.tensor([[0] * (longest - len(ids)) + ids for ids in prompts])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    together = model.generate(padded, attention_mask=mask, **options)[:, longest:]
    for row, ids in zip(together, prompts, strict=True):
        fresh = AutoModelForCausalLM.from_pretrained(folder)
        assert row.tolist() == fresh.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist()


def test_answers_are_those_that_transformers_gives_to_each_prompt_alone(tmp_path: Path) -> None:
    """Phi3 drops its cache when a row leaves the first window, and takes padding for tokens of the row."""
    folder = write_model(tmp_path / "model", "longrope")
    tokenizer = load_tokenizer(folder)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=len(tokenizer),
        max_position_embeddings=4 * WINDOW,
        original_max_position_embeddings=WINDOW,
        rope_parameters=LONGROPE,
        initializer_range=0.5,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **shape,
    )
    Phi3ForCausalLM(config).save_pretrained(folder)
    prompts = [list(range(10, 10 + length)) for length in (40, 12, 14, 16, 12)]
    alone = [
        AutoModelForCausalLM.from_pretrained(folder).generate(torch.tensor([ids]), max_new_tokens=20)
        for ids in prompts
    ]
    answers = generate(load_full_model(folder), tokenizer, prompts, Decoding(20, batch_size=8))
    assert [answer.text for answer in answers] == [
        tokenizer.decode(ids[0, len(prompt) :], skip_special_tokens=True)
        for ids, prompt in zip(alone, prompts, strict=True)
    ]


@pytest.mark.parametrize("rope_type", ["default", "linear", "yarn", "llama3"])
def test_other_types_do_not_depend_on_the_length(rope_type: str, base_model: Path) -> None:
    config = AutoConfig.from_pretrained(base_model)
    config.rope_parameters = {"rope_type": rope_type, "rope_theta": 100.0}
    assert not depends_on_length(config)
