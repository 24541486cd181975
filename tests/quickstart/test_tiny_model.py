"""The quickstart's base model: its tokenizer, its chat template, and a very short training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from automixalign.quickstart.spec import TinyModel
from automixalign.quickstart.synthetic import SYNTHETIC_TASKS, generate
from automixalign.quickstart.tiny_model import base_texts, build_model, build_tokenizer, train_tiny_model
from tests.data.rows import assistant, system, user

TINY = TinyModel(
    hidden_size=32, layers=1, heads=2, steps=30, batch_size=8, learning_rate=5e-3, rows_per_task=60
)
NAMES = sorted(SYNTHETIC_TASKS)
Trained = tuple[Path, dict[str, float]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A model's folder, and what its training returned."""
    folder = tmp_path_factory.mktemp("tiny") / "base" / "model"
    return folder, train_tiny_model(folder, TINY, list(SYNTHETIC_TASKS), seed=5)


def test_every_printable_character_is_one_token_and_decodes_to_itself() -> None:
    tokenizer = build_tokenizer()
    text = "".join(chr(code) for code in range(32, 127))
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(set(ids)) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer("é\n")["input_ids"] == [tokenizer.unk_token_id] * 2


def test_special_tokens_are_distinct() -> None:
    tokenizer = build_tokenizer()
    special = {getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos", "unk")}
    assert None not in special
    assert len(special) == 4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("system", [None, "Answer briefly."])
def test_a_prompt_is_a_token_prefix_of_the_prompt_with_its_answer(name: str, system: str | None) -> None:
    tokenizer = build_tokenizer()
    before = [] if system is None else [{"role": "system", "content": system}]
    for row in generate(name, 20, seed=0):
        conversation = [*before, *row["prompt"]]
        prompt = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template([*conversation, *row["chosen"]], return_dict=False)
        answer = tokenizer(row["answer"])["input_ids"]
        assert whole == [*prompt, *answer, tokenizer.eos_token_id]
        assert prompt[0] == tokenizer.bos_token_id
        assert prompt.count(tokenizer.bos_token_id) == 1
        assert tokenizer.unk_token_id not in whole


def test_the_template_takes_several_turns() -> None:
    tokenizer = build_tokenizer()
    turns = [system("s"), user("a"), assistant("b"), user("c")]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == "<bos><|system|>s<|user|>a<|assistant|>b<eos><|user|>c<|assistant|>"


@pytest.mark.parametrize(("right_answers", "side"), [(1.0, "chosen"), (0.0, "rejected")])
def test_base_texts_hold_only_the_requested_side(right_answers: float, side: str) -> None:
    texts = base_texts(["ordering"], 40, right_answers, seed=1)
    assert texts == [[*row["prompt"], *row[side]] for row in generate("ordering", 40, seed=1, pool="base")]


def test_base_texts_are_right_as_often_as_requested() -> None:
    texts = base_texts(["counting"], 1000, 0.3, seed=1)
    rows = generate("counting", 1000, seed=1, pool="base")
    right = sum(text[-1]["content"] == row["answer"] for text, row in zip(texts, rows, strict=True))
    assert 250 < right < 350
    assert texts == base_texts(["counting"], 1000, 0.3, seed=1)


def test_the_initial_weights_follow_the_seed_and_leave_the_global_generator_alone() -> None:
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first, again, other = (
        build_model(tokenizer, seed=seed, hidden_size=32, layers=1, heads=2) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_a_short_training_lowers_the_loss(trained: Trained) -> None:
    _, metrics = trained
    assert set(metrics) == {"first_loss", "final_loss", "seconds", "parameters"}
    assert metrics["final_loss"] < 0.8 * metrics["first_loss"]
    assert metrics["seconds"] > 0


def test_the_saved_model_loads_with_a_head_of_its_own(trained: Trained) -> None:
    folder, metrics = trained
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    assert "lm_head.weight" in weights
    assert "model.embed_tokens.weight" in weights
    assert model.num_parameters() == metrics["parameters"]
    assert model.dtype == torch.float32
    assert tokenizer.chat_template == build_tokenizer().chat_template
    assert model.config.vocab_size == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id


def test_greedy_generation_is_the_same_alone_and_left_padded(trained: Trained) -> None:
    folder, _ = trained
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    prompts = [generate(name, 1, seed=0)[0]["prompt"] for name in SYNTHETIC_TASKS]

    def answers(batch: list[Any]) -> list[str]:
        inputs = tokenizer.apply_chat_template(
            batch, add_generation_prompt=True, return_dict=True, padding=True, return_tensors="pt"
        )
        output = model.generate(**inputs, do_sample=False, max_new_tokens=4)
        new = output[:, inputs["input_ids"].shape[1] :]
        return list(tokenizer.batch_decode(new, skip_special_tokens=True))

    together = answers(prompts)
    assert together == [answers([prompt])[0] for prompt in prompts]
    assert all(len(answer) <= 4 for answer in together)


def test_the_same_arguments_give_the_same_weights(trained: Trained, tmp_path: Path) -> None:
    torch.rand(7)  # the state of the global generator must not matter
    for name, seed in (("again", 5), ("other", 6)):
        train_tiny_model(tmp_path / name, TINY, list(SYNTHETIC_TASKS), seed)
    first, again, other = (
        (folder / "model.safetensors").read_bytes()
        for folder in (trained[0], tmp_path / "again", tmp_path / "other")
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize(("tasks", "message"), [([], "at least one task"), (["nonsense"], "nonsense")])
def test_tasks_that_do_not_exist_are_refused(tmp_path: Path, tasks: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_tiny_model(tmp_path / "model", TINY, tasks, seed=0)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("key", "value"), [("right_answers", 1.5), ("steps", 0), ("heads", 5), ("rows_per_task", 0)]
)
def test_settings_out_of_range_are_refused(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=key):
        TinyModel.model_validate({**TINY.model_dump(), key: value})
