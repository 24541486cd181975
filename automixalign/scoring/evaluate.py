"""The stage `evaluate`: one model's metrics and generated answers on every task's held-out test split."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from automixalign.config.evaluation import EvaluationSettings
from automixalign.data.store import IDS, TEST, read_split, tasks_of
from automixalign.models.generate import Decoding, generate, room
from automixalign.models.load import load_model, load_tokenizer
from automixalign.scoring import caches
from automixalign.scoring.caches import SUMMARY
from automixalign.scoring.metrics import PairScores, pair_metrics, pass_rate
from automixalign.scoring.scorer import Scorer, log_ratios, pair_losses
from automixalign.scoring.verifiers.registry import registered_verifiers
from automixalign.steps.step import current_step
from automixalign.storage import files

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
            pairs = read_split(data, task, split, (*IDS, "generation_ids", "answer"))
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
    spec = settings.evaluation
    first: dict[tuple[int, ...], dict[str, Any]] = {}
    for row in pairs.select(["pair_id", "prompt_ids", "generation_ids", "answer"]).to_pylist():
        first.setdefault(tuple(row["generation_ids"] or row["prompt_ids"]), row)
    tokenizer = load_tokenizer(base_model)
    passes = registered_verifiers()[settings.verifiers[task]]
    prompts = [prompt for prompt in first if room(policy, prompt, 1)]
    if omitted := len(first) - len(prompts):
        current_step().warn(
            f"task {task}: {omitted} of {len(first)} test prompts leave the model no room for an answer, and "
            "are left out of the pass rate"
        )
    prompts = prompts[: spec.max_prompts]
    decoding = Decoding(spec.max_new_tokens, spec.batch_size, spec.precision)
    outputs = generate(policy, tokenizer, prompts, decoding, track=current_step().track)
    return [
        {
            "task": task,
            "pair_id": row["pair_id"],
            "output": text,
            "answer": row["answer"],
            "passed": passes(text, row["answer"]),
        }
        for row, text in zip(map(first.__getitem__, prompts), outputs, strict=True)
    ]
