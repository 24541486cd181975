"""A model's answers to the held-out prompts of a task, and which of them the task's verifier passes."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import pyarrow as pa

from automixalign.config.evaluation import EvaluationSettings, EvaluationSpec
from automixalign.data.store import read_split, turn_of
from automixalign.models.generate import Answer, Decoding, generate, room
from automixalign.models.load import load_tokenizer
from automixalign.scoring.job import Scoring, Share, Split, in_order
from automixalign.scoring.verifiers.registry import make_verifier
from automixalign.scoring.verifiers.verifier import Generated, Undecided
from automixalign.steps.jobs.launch import run_job
from automixalign.steps.step import current_step
from automixalign.system.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_MAX_CUT = 0.1
"""The share of answers that may be cut at `max_new_tokens` without a warning."""


Question: TypeAlias = tuple[list[int], str]
"""The token ids of a prompt, and the seed of its answer."""


class Prompt(NamedTuple):
    """A distinct prompt of a task, with the facts of its first pair."""

    pair_id: str
    ids: tuple[int, ...]
    prompt: str | list[dict[str, Any]]
    chosen: str | list[dict[str, Any]]
    answer: str | None
    row: dict[str, Any]
    """The columns that the task's verifier reads."""


def read_prompts(
    data: Path, task: str, split: str, config: "PreTrainedConfig", limit: int | None
) -> list[Prompt]:
    """The distinct prompts of a split that leave the model room for an answer.

    Args:
        data: the prepared data.
        config: of the model.
        limit: the largest number of prompts; None for all.
    """
    columns = ("pair_id", "prompt", "chosen", "prompt_ids", "generation_ids", "answer", "row")
    distinct: dict[tuple[int, ...], dict[str, Any]] = {}
    for row in read_split(data, task, split, columns).to_pylist():
        distinct.setdefault(tuple(row["generation_ids"] or row["prompt_ids"]), row)
    prompts = [
        Prompt(
            pair_id=row["pair_id"],
            ids=ids,
            prompt=turn_of(row["prompt"]),
            chosen=turn_of(row["chosen"]),
            answer=row["answer"],
            row=json.loads(row["row"] or "{}"),
        )
        for ids, row in distinct.items()
        if room(config, ids, 1)
    ]
    if omitted := len(distinct) - len(prompts):
        current_step().warn(
            f"task {task}: {omitted} of {len(distinct)} {split} prompts leave the model no room for an "
            "answer, and are left out of the pass rate"
        )
    return prompts[:limit]


class Answering(Scoring):
    """What to score and to answer with a model."""

    tokenizer: Path
    """Folder with the tokenizer, which decodes the answers."""
    questions: dict[str, list[Question]]
    """Task -> the prompts to answer."""
    decoding: Decoding

    def scores_and_answers(self, processes: int) -> tuple[dict[Split, pa.Table], dict[str, list[Answer]]]:
        """The scores of each split, and task -> the answers to its questions; without any, no model is loaded.

        Args:
            processes: of this machine, which share the batches.
        """
        shares = run_job(self, processes) if self.pairs or any(self.questions.values()) else []
        answers = {}
        for task, asked in self.questions.items():
            rows = in_order((share["answers"][task] for share in shares), len(asked))
            answers[task] = [Answer(*row) for row in rows]
        return self.tables(shares), answers

    def share(self, model: "PreTrainedModel", own: slice) -> Share:
        scored = super().share(model, own)
        return {
            **scored,
            "answers": {task: self._answers(model, asked, own) for task, asked in self.questions.items()},
        }

    def _answers(self, model: "PreTrainedModel", asked: Sequence[Question], own: slice) -> list[list[Any]]:
        """The row of each question in the batches of this process, and the answer."""
        answered: list[int] = []

        def track(batches: Iterable[list[int]], _: int) -> Iterable[list[int]]:
            mine = list(batches)[own]
            answered.extend(chain.from_iterable(mine))
            return current_step().track(mine, len(mine))

        prompts, seeds = [ids for ids, _ in asked], [seed for _, seed in asked]
        tokenizer = load_tokenizer(self.tokenizer)
        made = generate(model, tokenizer, prompts, self.decoding, seeds=seeds, track=track)
        return [[row, *made[row]] for row in answered]


def questions(spec: EvaluationSpec, seed: int, task: str, prompts: Sequence[Prompt]) -> list[Question]:
    """Each prompt `samples` times.

    Args:
        seed: of the draws, which depend also on the task, the pair and the number of the sample, but not on the
            model: all models draw by the same numbers.
    """
    return [
        (list(prompt.ids), f"answer:{seed}:{task}:{prompt.pair_id}:{sample}")
        for prompt in prompts
        for sample in range(spec.samples)
    ]


def decoding(spec: EvaluationSpec) -> Decoding:
    """How answers are generated."""
    return Decoding(spec.max_new_tokens, spec.batch_size, spec.precision, spec.temperature, spec.top_p)


def answer_rows(
    spec: EvaluationSpec, task: str, prompts: Sequence[Prompt], answers: Sequence[Answer]
) -> list[dict[str, Any]]:
    """The answers to the `questions` of a task's prompts, as an evaluation stores them.

    Returns:
        For each answer `task`, `pair_id`, `sample`, `output` and `answer`, the right one.
    """
    asked = [(prompt, sample) for prompt in prompts for sample in range(spec.samples)]
    cut = sum(not answer.complete for answer in answers)
    if cut > _MAX_CUT * len(answers):
        current_step().warn(
            f"task {task}: {cut} of {len(answers)} answers are cut at evaluation.max_new_tokens="
            f"{spec.max_new_tokens}"
        )
    return [
        {
            "task": task,
            "pair_id": prompt.pair_id,
            "sample": sample,
            "output": answer.text,
            "answer": prompt.answer,
        }
        for (prompt, sample), answer in zip(asked, answers, strict=True)
    ]


def verify(
    settings: EvaluationSettings, task: str, prompts: Sequence[Prompt], answers: Sequence[dict[str, Any]]
) -> None:
    """Add `passed` to the answers; None without a verifier. An answer that it cannot decide on does not pass.

    Args:
        prompts: of the answers.
        answers: as `answer_rows` returns them.

    Raises:
        ConfigError: the verifier fails.
    """
    spec = settings.verifiers.get(task)
    verifier = spec and make_verifier(spec)
    by_pair = {prompt.pair_id: prompt for prompt in prompts}
    undecided: Counter[str] = Counter()
    for answer in answers:
        prompt = by_pair[answer["pair_id"]]
        generated = Generated(prompt.prompt, answer["output"], prompt.answer or "", prompt.row)
        try:
            answer["passed"] = verifier and bool(verifier.passes(generated))
        except Undecided as reason:
            answer["passed"] = False
            undecided[str(reason)] += 1
        except Exception as error:  # a package's own code runs here
            raise ConfigError(
                f"task {task}: the verifier {spec and spec.name!r} fails on an answer to pair "
                f"{prompt.pair_id}: {type(error).__name__}: {error}; repair it"
            ) from error
    for why, count in undecided.items():
        current_step().warn(
            f"task {task}: {count} of {len(answers)} answers count as failed, because they cannot be verified: "
            f"{why}"
        )
