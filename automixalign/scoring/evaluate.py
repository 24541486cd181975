"""The stage `evaluate`: one model's metrics on every task's held-out splits, and generated answers on `test`.

`test` reports; `validation` chooses among the models (`report/leaderboard.py`).
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from automixalign.config.evaluation import CHOSEN, EvaluationSettings
from automixalign.data.store import IDS, TEST, VALIDATION, read_card, read_split, tasks_of
from automixalign.models.generate import Answer
from automixalign.models.load import load_config, resolved
from automixalign.scoring import caches
from automixalign.scoring.caches import GENERATIONS, SUMMARY
from automixalign.scoring.generation import (
    Answering,
    Prompt,
    answer_rows,
    decoding,
    questions,
    read_prompts,
    verify,
)
from automixalign.scoring.intervals import prompt_numbers
from automixalign.scoring.job import Split
from automixalign.scoring.judge.judged import judge_answers, read_baseline
from automixalign.scoring.metrics.registry import PairScores, answer_values, means, pair_values
from automixalign.scoring.scorer import log_ratios, pair_losses
from automixalign.steps.step import current_step
from automixalign.storage import files

REFERENCE = "reference"


def evaluate(
    settings: EvaluationSettings,
    name: str,
    family: str,
    data: Path,
    reference_logps: Path,
    tokenizer: Path,
    model: Path | None,
    output: Path,
    *,
    base_model: Path | None = None,
    baseline: Path | None = None,
    splits: Sequence[str] = (TEST, VALIDATION),
) -> dict[str, Any]:
    """Write the scores of every pair, `TASK.parquet`, the generated answers and a summary.

    Choose among models by `validation`, and keep `test` for the results.

    Args:
        settings: loss, verifiers, batch size and precision.
        name: the model's name in the leaderboard.
        family: `reference`, `specialist`, `generalist` or `merge`. The scores of `reference` come from the
            cache.
        data: the prepared data.
        reference_logps: the caches of the reference log-probabilities.
        tokenizer: folder with the tokenizer and the configuration of all models.
        model: the model to measure; None for the reference if no task is answered.
        output: folder to write.
        base_model: the model under a LoRA adapter.
        baseline: the evaluation of the reference, if the judge compares with its answers. The reference itself
            has none, and is then not judged.
        splits: the splits to measure on. The first one is measured with generated answers, into `output`; each
            further one without them, into `output/SPLIT`, unless it is empty.

    Returns:
        The summary of the first split: each task's metrics (`automixalign.scoring.metrics`) that need no
        specialist. The leaderboard computes those that do.

    Raises:
        CacheError: the reference log-probabilities lack a pair, belong to other data, or are in another
            precision; or the baseline lacks an answer.
        ConfigError: a verifier fails, or the judge's endpoint refuses the requests.
        UnreachableError: the judge's endpoint does not answer.
        ModelError: the model cannot be loaded or gives values that are not finite.
    """
    spec, record = settings.evaluation, current_step().record
    loading = settings.loading.of(family)
    if loading != settings.loading:
        current_step().warn(
            f"{name} is a merge of the base model in full; the reference and the specialists, with which it is "
            f"compared, were measured on the base in {settings.loading.quantize}"
        )
    record.add_params({"model": name, "family": family})
    for task in tasks_of(data):
        caches.check_cache(reference_logps / task, data, task)
    if family != REFERENCE:
        caches.check_precision(reference_logps, tasks_of(data), resolved(spec.precision))
    measured = [split for split in splits if split == splits[0] or _has_pairs(data, split)]
    prompts = _prompts(settings, data, splits[0], tokenizer)
    scoring = Answering(
        model=model,
        base_model=base_model,
        data=data,
        loading=loading,
        batch_size=spec.batch_size,
        precision=spec.precision,
        pairs=[] if family == REFERENCE else [(task, split) for split in measured for task in tasks_of(data)],
        tokenizer=tokenizer,
        questions={task: questions(spec, settings.seed, task, asked) for task, asked in prompts.items()},
        decoding=decoding(spec),
    )
    scores, answers = scoring.scores_and_answers(spec.processes)
    summaries: list[dict[str, Any]] = []
    with files.replacing(output) as folder:
        for split in measured:
            tasks, tables = _measure(settings, scores, data, reference_logps, split)
            summary = {"model": name, "family": family, "loss": settings.loss.model_dump(), "tasks": tasks}
            target = folder / split if summaries else folder
            if not summaries:
                generations = _generations(settings, prompts, answers, baseline)
                for task, rows in generations.items():
                    tasks[task] |= means(answer_values(rows))
                files.write_jsonl(target / GENERATIONS, chain.from_iterable(generations.values()))
            for task, table in tables.items():
                caches.write_scores(target / f"{task}.parquet", table)
            files.write_json(target / SUMMARY, summary)
            record.add_metrics({split: tasks} if summaries else tasks)
            summaries.append(summary)
    return summaries[0]


def _prompts(settings: EvaluationSettings, data: Path, split: str, tokenizer: Path) -> dict[str, list[Prompt]]:
    """Task -> the prompts to answer, without those that are too long for the models."""
    config, limit = load_config(tokenizer), settings.evaluation.max_prompts
    tasks = filter(settings.answers, tasks_of(data))
    return {task: read_prompts(data, task, split, config, limit) for task in tasks}


def _generations(
    settings: EvaluationSettings,
    prompts: Mapping[str, list[Prompt]],
    answers: Mapping[str, list[Answer]],
    baseline: Path | None,
) -> dict[str, list[dict[str, Any]]]:
    """Task -> verified and judged answers."""
    spec = settings.evaluation
    others = read_baseline(baseline) if baseline else None
    generations = {}
    for task, asked in prompts.items():
        rows = answer_rows(spec, task, asked, answers[task])
        verify(settings, task, asked, rows)
        if spec.judge and (others is not None or spec.judge.baseline == CHOSEN):
            judge_answers(spec.judge, task, asked, rows, others)
        generations[task] = rows
    return generations


def _has_pairs(data: Path, split: str) -> bool:
    return all(task["pairs"][split] for task in read_card(data)["tasks"])


def _measure(
    settings: EvaluationSettings,
    scores_of: Mapping[Split, pa.Table],
    data: Path,
    reference_logps: Path,
    split: str,
) -> tuple[dict[str, dict[str, float]], dict[str, pa.Table]]:
    """Each task's metrics and scores on one split; a split without scores is the reference's."""
    metrics, tables = {}, {}
    for task in tasks_of(data):
        pairs = read_split(data, task, split, IDS)
        ids = pairs.column("pair_id").to_pylist()
        cache = caches.read_cache(reference_logps / task, split, caches.CHOSEN, caches.REJECTED)
        reference_scores = caches.join(cache, ids, f"{task} {split}")
        scores = scores_of.get((task, split), reference_scores)
        chosen_ratio, rejected_ratio = log_ratios(scores, reference_scores)
        margins = settings.loss.beta * (chosen_ratio - rejected_ratio)
        losses = pair_losses(settings.loss, scores, reference_scores, pairs)
        columns = {
            caches.MARGIN: margins,
            caches.LOG_RATIO: chosen_ratio,
            caches.LOSS: losses,
            caches.PROMPT: prompt_numbers(pairs.column("prompt_ids").to_pylist()),
        }
        for column, values in columns.items():
            scores = scores.append_column(column, pa.array(values))
        tables[task] = scores
        metrics[task] = means(pair_values(PairScores(losses, margins, chosen_ratio)))
    return metrics, tables
