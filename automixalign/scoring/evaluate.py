"""The stage `evaluate`: one model's metrics and generated answers on every task's held-out test split."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from automixalign.config.evaluation import EvaluationSettings, EvaluationSpec
from automixalign.data.store import IDS, TEST, read_split, tasks_of
from automixalign.models.load import autocast, load_model, load_tokenizer
from automixalign.scoring import caches
from automixalign.scoring.caches import SUMMARY
from automixalign.scoring.metrics import PairScores, pair_metrics, pass_rate
from automixalign.scoring.scorer import Scorer, log_ratios, pair_losses
from automixalign.scoring.verifiers.registry import registered_verifiers
from automixalign.steps.step import current_step
from automixalign.storage import files

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GENERATIONS = "generations.jsonl"
REFERENCE = "reference"


def evaluate(
    settings: EvaluationSettings,
    name: str,
    family: str,
    data: Path,
    reference_logps: Path,
    base_model: Path,
    model: Path,
    output: Path,
    split: str = TEST,
) -> dict[str, Any]:
    """Write the scores of every pair, `TASK.parquet`, the generated answers and a summary.

    Args:
        settings: loss, verifiers, batch size and precision.
        name: the model's name in the leaderboard.
        family: `reference`, `specialist`, `generalist` or `merge`. The scores of `reference` come from the
            cache.
        data: the prepared data.
        reference_logps: the caches of the reference log-probabilities.
        base_model: the model under a LoRA adapter; its tokenizer decodes the answers.
        model: the model to measure.
        output: folder to write.
        split: the split to measure on. Choose settings by `validation`, and keep `test` for the results.

    Returns:
        The summary: each task's metrics (`automixalign.scoring.metrics`). The excess is missing, because it
        needs the specialists; the leaderboard computes it.

    Raises:
        CacheError: the reference log-probabilities lack a pair or belong to other data.
        ModelError: the model cannot be loaded or gives values that are not finite.
    """
    spec = settings.evaluation
    policy = load_model(model, base_model)
    scorer = Scorer(policy, spec.batch_size, spec.precision)
    tasks: dict[str, dict[str, float]] = {}
    generations: list[dict[str, Any]] = []
    with files.replacing(output) as folder:
        for task in tasks_of(data):
            caches.check_cache(reference_logps / task, data, task)
            pairs = read_split(data, task, split, (*IDS, "answer"))
            ids = pairs.column("pair_id").to_pylist()
            cache = caches.read_cache(reference_logps / task, split, caches.CHOSEN, caches.REJECTED)
            reference_scores = caches.join(cache, ids, f"{task} {split}")
            scores = reference_scores if family == REFERENCE else scorer.scores(pairs)
            chosen_ratio, rejected_ratio = log_ratios(scores, reference_scores)
            margins = settings.loss.beta * (chosen_ratio - rejected_ratio)
            losses = pair_losses(settings.loss, scores, reference_scores, pairs)
            scores = scores.append_column("margin", pa.array(margins))
            scores = scores.append_column(caches.LOSS, pa.array(losses))
            caches.write_scores(folder / f"{task}.parquet", scores)
            tasks[task] = pair_metrics(PairScores(losses, margins, chosen_ratio))
            if spec.generate and task in settings.verifiers:
                answers = _verified_answers(settings, task, pairs, policy, base_model=base_model)
                tasks[task]["pass_rate"] = pass_rate(answer["passed"] for answer in answers)
                generations += answers
        summary = {"model": name, "family": family, "loss": settings.loss.model_dump(), "tasks": tasks}
        files.write_json(folder / SUMMARY, summary)
        files.write_jsonl(folder / GENERATIONS, generations)
    record = current_step().record
    record.add_params({"model": name, "family": family})
    record.add_metrics(tasks)
    return summary


def _verified_answers(
    settings: EvaluationSettings, task: str, pairs: pa.Table, policy: "PreTrainedModel", base_model: Path
) -> list[dict[str, Any]]:
    """Answer each distinct prompt greedily, and verify the answers."""
    first: dict[tuple[int, ...], dict[str, Any]] = {}
    for row in pairs.select(["pair_id", "prompt_ids", "answer"]).to_pylist():
        first.setdefault(tuple(row["prompt_ids"]), row)
    rows = list(first.values())[: settings.evaluation.max_prompts]
    tokenizer = load_tokenizer(base_model)
    passes = registered_verifiers()[settings.verifiers[task]]
    prompts = [row["prompt_ids"] for row in rows]
    outputs = generate(policy, tokenizer, prompts, settings.evaluation)
    return [
        {
            "task": task,
            "pair_id": row["pair_id"],
            "output": text,
            "answer": row["answer"],
            "passed": passes(text, row["answer"]),
        }
        for row, text in zip(rows, outputs, strict=True)
    ]


def generate(
    policy: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: list[list[int]],
    spec: EvaluationSpec,
) -> list[str]:
    """Greedy continuations of tokenised prompts, in the order of the prompts, without special tokens."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    texts = [""] * len(prompts)
    batches = [order[at : at + spec.batch_size] for at in range(0, len(order), spec.batch_size)]
    policy.eval()
    for batch in current_step().track(batches, len(batches)):
        continuations = _continue(policy, tokenizer, [prompts[index] for index in batch], spec)
        for index, text in zip(batch, continuations, strict=True):
            texts[index] = text
    return texts


@torch.inference_mode()
def _continue(
    policy: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: list[list[int]],
    spec: EvaluationSpec,
) -> list[str]:
    padded = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(policy.device)
    positions = getattr(policy.config, "max_position_embeddings", None) or math.inf
    room = positions - padded["input_ids"].shape[1]  # at least 1, as prompts are shorter than max_length
    with autocast(spec.precision):
        ids = policy.generate(
            **padded,
            do_sample=False,
            max_new_tokens=min(spec.max_new_tokens, room),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    new = ids[:, padded["input_ids"].shape[1] :]
    texts: list[str] = tokenizer.batch_decode(new, skip_special_tokens=True)
    return texts
