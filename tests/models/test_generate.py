"""Generated text: where it ends, and what it depends on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from automixalign.config.models import BaseModelSettings, BaseModelSpec
from automixalign.models.generate import Decoding, generate
from automixalign.models.load import load_model, load_tokenizer
from automixalign.models.prepare import prepare_base_model
from automixalign.steps.step import collect_warnings
from automixalign.system.errors import ModelError
from automixalign.training.launch import train
from benchmarks import tiny

PROMPTS = [[1, *range(20, 26)], [1, 40, 41], [1, 33]]


@pytest.fixture
def gemma_like(base_model: Path, tmp_path: Path) -> Path:
    """A model whose turns end with `<|user|>`, which its tokenizer does not call an end, and that samples."""
    model = Path(shutil.copytree(base_model, tmp_path / "gemma"))
    policy, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    end = tokenizer.convert_tokens_to_ids("<|user|>")
    ids = policy.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=6, do_sample=False)
    with torch.no_grad():
        policy.lm_head.weight[[end, int(ids[0, -1])]] = policy.lm_head.weight[[int(ids[0, -1]), end]]
    policy.save_pretrained(model)
    edit_generation_config(model, eos_token_id=[end], temperature=0.6, top_p=0.9, repetition_penalty=1.3)
    return model


def edit_generation_config(model: Path, **values: Any) -> None:
    path = model / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def prepare(source: Path, output: Path) -> Path:
    spec = BaseModelSpec(source=str(source))
    prepare_base_model(BaseModelSettings(seed=0, base_model=spec, synthetic_tasks=[], fingerprint=""), output)
    return output


def answer_ids(model: Path, prompt: list[int]) -> list[int]:
    """The greedy answer of transformers alone, as a user of a model folder gets it."""
    policy = AutoModelForCausalLM.from_pretrained(model)
    ids = policy.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=20)
    return list(map(int, ids[0, len(prompt) :]))


def test_the_base_model_names_all_ends_and_keeps_the_rest(
    gemma_like: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Its config cannot be saved by transformers: it has a temperature and no `do_sample`."""
    before = json.loads((gemma_like / "generation_config.json").read_text())
    with collect_warnings() as warnings:
        after = json.loads((prepare(gemma_like, tmp_path / "out") / "generation_config.json").read_text())
    assert after["eos_token_id"] == [tokenizer.eos_token_id, *before["eos_token_id"]]
    assert after["pad_token_id"] == tokenizer.pad_token_id
    kept = ("temperature", "top_p", "repetition_penalty")
    assert {key: after[key] for key in kept} == {key: before[key] for key in kept}
    (warning,) = warnings
    assert warning.endswith(
        ": its generation config sets repetition_penalty=1.3; greedy answers follow it, as in transformers"
    )


def test_without_generation_config_the_ends_of_the_model_config_count(
    base_model: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = Path(shutil.copytree(base_model, tmp_path / "model"))
    (model / "generation_config.json").unlink()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"eos_token_id": [7, 9]}))
    after = json.loads((prepare(model, tmp_path / "out") / "generation_config.json").read_text())
    assert after["eos_token_id"] == [tokenizer.eos_token_id, 7, 9]


@pytest.mark.parametrize("options", [{}, {"lora": {"rank": 2}}], ids=["full", "lora"])
def test_a_trained_model_ends_and_decodes_as_in_transformers(
    gemma_like: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    base = prepare(gemma_like, tmp_path / "base")
    training = tiny.specialist_training(tmp_path / "trained", steps=1, **options)
    train(training.model_copy(update={"base_model": base}))
    model = training.output
    policy, tokenizer = load_model(model, base), load_tokenizer(base)
    if options:
        policy.save_pretrained(tmp_path / "merged")
        tokenizer.save_pretrained(tmp_path / "merged")
        model = tmp_path / "merged"
    answers = generate(policy, tokenizer, PROMPTS, Decoding(20, batch_size=2))
    expected = [answer_ids(model, prompt) for prompt in PROMPTS]
    assert [answer.text for answer in answers] == [
        tokenizer.decode(ids, skip_special_tokens=True) for ids in expected
    ]
    assert [answer.complete for answer in answers] == [len(ids) < 20 for ids in expected]
    assert answers[0].complete, "the test needs an answer that ends"
    saved = json.loads((model / "generation_config.json").read_text())
    assert saved["eos_token_id"] == json.loads((base / "generation_config.json").read_text())["eos_token_id"]
    assert saved["temperature"] == 0.6


def test_an_answer_ends_before_the_first_end(gemma_like: Path, tmp_path: Path) -> None:
    """The end is an ordinary token here, which decoding does not leave out."""
    edit_generation_config(gemma_like, repetition_penalty=1.0)
    edit_generation_config(gemma_like, eos_token_id=[answer_ids(gemma_like, PROMPTS[0])[3]])
    base = prepare(gemma_like, tmp_path / "base")
    policy, tokenizer = load_model(base, base), load_tokenizer(base)
    pieces: list[str] = []
    (answer,) = generate(policy, tokenizer, PROMPTS[:1], Decoding(20), write=pieces.append)
    assert tokenizer(answer.text, add_special_tokens=False)["input_ids"] == answer_ids(base, PROMPTS[0])[:3]
    assert "".join(pieces) == answer.text


def test_a_temperature_draws_and_a_seed_repeats(base_model: Path) -> None:
    policy, tokenizer = load_model(base_model, base_model), load_tokenizer(base_model)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(generate(policy, tokenizer, PROMPTS, Decoding(20, batch_size=3, temperature=1.0)))
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.fixture
def learned_positions(tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """A model with 32 learned positions, which raises an index error after them, and never ends by itself."""
    torch.manual_seed(0)
    sizes = {"n_positions": 32, "n_embd": 8, "n_layer": 1, "n_head": 1}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, **sizes))
    with torch.no_grad():
        model.transformer.wte.weight[:10] = 0  # a special token is never the most likely one
        model.transformer.wte.weight[10:].uniform_(1, 2)
        model.transformer.ln_f.weight.fill_(0)
        model.transformer.ln_f.bias.fill_(1)
    return model


@pytest.mark.parametrize(("longest", "tokens"), [(30, 2), (12, 20), (8, 20)])
def test_an_answer_ends_at_the_last_position_of_the_model(
    learned_positions: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, longest: int, tokens: int
) -> None:
    """And a short prompt gets all its tokens, whatever other prompts there are."""
    answers = generate(learned_positions, tokenizer, [[50] * longest, [60] * 3], Decoding(20, batch_size=2))
    assert [len(answer.text) for answer in answers] == [tokens, 20]


def test_a_prompt_without_room_is_refused(
    learned_positions: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ModelError, match=r"a prompt of 32 tokens leaves no room .* 32 positions"):
        generate(learned_positions, tokenizer, [[60] * 3, [50] * 32], Decoding(20))
