"""Train the quickstart's base model: a character-level Llama of about 100,000 parameters.

It learns the form of the synthetic tasks' answers by SFT. Only some of its texts are right, so that preference
training has something to decide.
"""

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

from automixalign.quickstart.spec import TINY_POSITIONS, TinyModel
from automixalign.quickstart.synthetic import generate
from automixalign.system import mkl

mkl.load_kernels()

_PAD, _BOS, _EOS, _UNK = "<pad>", "<bos>", "<eos>", "<unk>"
_ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
_PRINTABLE = [chr(code) for code in range(32, 127)]
_IGNORED = -100  # the label that the loss skips

# Only the assistant's turn ends with a token (eos): the next role's token ends the others. The generation
# prompt begins the assistant's turn, so a prompt is a token prefix of the prompt with its answer.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer of one token per printable ASCII character, with a chat template.

    Any other character is `<unk>`. Plain text gets no special tokens: the chat template adds them.
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
    """Build a model with random weights; its output head is not tied to the embeddings."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=TINY_POSITIONS,
        tie_word_embeddings=False,
        # 0.02 is for wide models; a narrow one learns too slowly from it.
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
    """Draw the SFT conversations: a user turn, and an answer that is right with probability `right_answers`.

    Args:
        tasks: the synthetic tasks.
        rows_per_task: conversations per task, from the pool `base`.
        right_answers: share of right answers; the others are the rows' wrong answers.
        seed: the experiment's seed.

    Raises:
        ValueError: there is no task, or a task is unknown or has fewer prompts than `rows_per_task`.
    """
    if not tasks:
        raise ValueError("the base model needs at least one task")
    texts: list[list[dict[str, str]]] = []
    for name in tasks:
        rng = random.Random(f"{seed}:tiny-model:answers:{name}")
        for row in generate(name, rows_per_task, seed, pool="base"):
            side = "chosen" if rng.random() < right_answers else "rejected"
            texts.append([*row["prompt"], *row[side]])
    return texts


def train_tiny_model(output: Path, tiny: TinyModel, tasks: Sequence[str], seed: int) -> dict[str, float]:
    """Train the base model on synthetic tasks and save it with its tokenizer in the folder `output`.

    On a CPU, the same arguments give the same weights; CUDA kernels do not guarantee this.

    Returns:
        See `train_on_texts`.

    Raises:
        ValueError: there is no task, or a task is unknown or has fewer prompts than `tiny.rows_per_task`.
    """
    return train_on_texts(output, base_texts(tasks, tiny.rows_per_task, tiny.right_answers, seed), tiny, seed)


def train_on_texts(
    output: Path, texts: list[list[dict[str, str]]], tiny: TinyModel, seed: int
) -> dict[str, float]:
    """Train the base model on conversations that end with the assistant's answer; only its tokens have a loss.

    Returns:
        `first_loss` and `final_loss`, means over the first and last tenth of the steps (at least one);
        `seconds` of training; `parameters`.
    """
    tokenizer = build_tokenizer()
    dataset = _tokenize(tokenizer, texts)
    model = build_model(
        tokenizer, seed=seed, hidden_size=tiny.hidden_size, layers=tiny.layers, heads=tiny.heads
    )
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=scratch,
                max_steps=tiny.steps,
                per_device_train_batch_size=tiny.batch_size,
                learning_rate=tiny.learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=max(1, tiny.steps // 20),
                adam_beta2=0.99,
                weight_decay=0.0,
                max_length=TINY_POSITIONS,
                seed=_derived_seed(seed, "sft"),
                data_seed=_derived_seed(seed, "order"),
                use_cpu=not torch.cuda.is_available(),
                bf16=False,
                gradient_checkpointing=False,
                dataset_num_proc=None,
                # `_tokenize` has prepared the rows: TRL takes longer for it than for the training.
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


def _tokenize(tokenizer: PreTrainedTokenizerFast, texts: list[list[dict[str, str]]]) -> Dataset:
    """Tokenize conversations into `input_ids` and `labels`; only the answers have labels."""
    prompts = tokenizer.apply_chat_template(
        [text[:-1] for text in texts], add_generation_prompt=True, return_dict=False
    )
    whole = tokenizer.apply_chat_template(texts, return_dict=False)
    labels = [[_IGNORED] * len(prompt) + ids[len(prompt) :] for prompt, ids in zip(prompts, whole, strict=True)]
    return Dataset.from_dict({"input_ids": whole, "labels": labels})


def _derived_seed(seed: int, name: str) -> int:
    return random.Random(f"{seed}:tiny-model:{name}").getrandbits(31)
