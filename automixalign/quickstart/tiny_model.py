"""The quickstart's base model: a character-level Llama of about 100k parameters, trained by SFT.

The model learns the form of the synthetic tasks' answers from text that is right only part of the
time, so that preference training has something left to decide.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
)
from trl import SFTConfig, SFTTrainer

from automixalign.quickstart.spec import TINY_POSITIONS
from automixalign.quickstart.synthetic import SYNTHETIC_TASKS, generate
from automixalign.system import mkl

mkl.load_kernels()

_PAD, _BOS, _EOS, _UNK = "<pad>", "<bos>", "<eos>", "<unk>"
_ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
_PRINTABLE = [chr(code) for code in range(32, 127)]
_IGNORED = -100  # the label that the loss leaves out

# Only the assistant's turn is closed, by eos: the next role's token ends the others. What comes
# with add_generation_prompt is what the assistant's turn starts with, so a prompt is always a
# token prefix of the prompt with its answer.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of one token per printable ASCII character, with a chat template.

    Any other character is ``<unk>``. Nothing is added to plain text (no bos, no eos): the chat
    template writes the special tokens.
    """
    special = [_PAD, _BOS, _EOS, _UNK, *_ROLES.values()]
    vocabulary = {token: index for index, token in enumerate([*special, *_PRINTABLE])}
    backend = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=_UNK))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()  # the default decoder puts a space between two tokens
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=_PAD,
        bos_token=_BOS,
        eos_token=_EOS,
        unk_token=_UNK,
        additional_special_tokens=list(_ROLES.values()),
        model_max_length=TINY_POSITIONS,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(
    tokenizer: PreTrainedTokenizerFast, *, seed: int, hidden_size: int, layers: int, heads: int
) -> LlamaForCausalLM:
    """Return a freshly initialised model for ``tokenizer``, with weights drawn from ``seed``.

    The output head is not tied to the embeddings, so that it can be trained on its own.

    Raises:
        ValueError: ``hidden_size`` cannot be split into ``heads`` heads of an even size.
    """
    if heads < 1 or hidden_size % (2 * heads):
        raise ValueError(f"hidden_size {hidden_size} does not split into {heads} heads of an even size")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=TINY_POSITIONS,
        tie_word_embeddings=False,
        # 0.02 suits wide models; a narrow one starts too slowly from it.
        initializer_range=0.05,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_derived_seed(seed, "init"))
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def base_texts(
    tasks: Sequence[str], rows_per_task: int, right_answers: float, seed: int
) -> list[list[dict[str, str]]]:
    """Return the SFT conversations: one user turn, and an answer that is right only at times.

    Each answer is the right one with probability ``right_answers`` and the row's wrong one
    otherwise. There are ``rows_per_task`` conversations a task, drawn from the pool ``base``.

    Raises:
        ValueError: ``right_answers`` is no probability, there is no task, or the rows cannot be
            generated (see :func:`automixalign.quickstart.synthetic.generate`).
    """
    if not 0.0 <= right_answers <= 1.0:
        raise ValueError(f"right_answers must lie between 0 and 1, got {right_answers}")
    if not tasks or rows_per_task < 1:
        raise ValueError("the base model needs at least one task and one row of each")
    texts: list[list[dict[str, str]]] = []
    for name in tasks:
        rng = random.Random(f"{seed}:tiny-model:answers:{name}")
        for row in generate(name, rows_per_task, seed, pool="base"):
            side = "chosen" if rng.random() < right_answers else "rejected"
            texts.append([*row["prompt"], *row[side]])
    return texts


def train_tiny_model(
    output: Path,
    *,
    seed: int,
    hidden_size: int,
    layers: int,
    heads: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    tasks: Sequence[str] = tuple(SYNTHETIC_TASKS),
    rows_per_task: int,
    right_answers: float,
) -> dict[str, float]:
    """Train the base model by SFT and save it with its tokenizer under ``output``.

    The loss is on the answers' tokens alone. The same arguments give the same weights on the same
    machine (on a CPU; CUDA kernels make no such promise).

    Returns:
        ``first_loss`` and ``final_loss`` (mean SFT loss over the first and the last tenth of the
        steps, at least one), ``seconds`` (of training) and ``parameters``.

    Raises:
        ValueError: a setting is out of its range (see :func:`build_model`, :func:`base_texts`).
    """
    return train_on_texts(
        output,
        base_texts(tasks, rows_per_task, right_answers, seed),
        seed=seed,
        hidden_size=hidden_size,
        layers=layers,
        heads=heads,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
    )


def train_on_texts(
    output: Path,
    texts: list[list[dict[str, str]]],
    *,
    seed: int,
    hidden_size: int,
    layers: int,
    heads: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
) -> dict[str, float]:
    """As `train_tiny_model`, on conversations that end with the assistant's answer.

    Raises:
        ValueError: a setting is out of its range (see :func:`build_model`).
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    tokenizer = build_tokenizer()
    dataset = _tokenized(tokenizer, texts)
    model = build_model(tokenizer, seed=seed, hidden_size=hidden_size, layers=layers, heads=heads)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=scratch,
                max_steps=steps,
                per_device_train_batch_size=batch_size,
                learning_rate=learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=max(1, steps // 20),
                adam_beta2=0.99,
                weight_decay=0.0,
                max_length=TINY_POSITIONS,
                seed=_derived_seed(seed, "sft"),
                data_seed=_derived_seed(seed, "order"),
                use_cpu=not torch.cuda.is_available(),
                bf16=False,
                gradient_checkpointing=False,
                dataset_num_proc=None,
                # Tokenized here with the labels: preparing rows one by one takes TRL longer than
                # the training itself.
                dataset_kwargs={"skip_prepare_dataset": True},
                save_strategy="no",
                report_to="none",
                logging_steps=1,
                disable_tqdm=True,
            ),
            train_dataset=dataset,
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    seconds = time.perf_counter() - started
    output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    tenth = max(1, len(losses) // 10)
    return {
        "first_loss": sum(losses[:tenth]) / tenth,
        "final_loss": sum(losses[-tenth:]) / tenth,
        "seconds": seconds,
        "parameters": float(model.num_parameters()),
    }


def _tokenized(tokenizer: PreTrainedTokenizerFast, texts: list[list[dict[str, str]]]) -> Dataset:
    """Return ``texts`` as ``input_ids`` and ``labels``, the labels covering the answers alone."""
    prompts = tokenizer.apply_chat_template(
        [text[:-1] for text in texts], add_generation_prompt=True, return_dict=False
    )
    whole = tokenizer.apply_chat_template(texts, return_dict=False)
    labels = [[_IGNORED] * len(prompt) + ids[len(prompt) :] for prompt, ids in zip(prompts, whole, strict=True)]
    return Dataset.from_dict({"input_ids": whole, "labels": labels})


def _derived_seed(seed: int, name: str) -> int:
    return random.Random(f"{seed}:tiny-model:{name}").getrandbits(31)
