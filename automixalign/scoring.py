"""Log-probabilities and DPO losses of preference pairs under a model, computed once and cached by pair id."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from automixalign import files, models, progress
from automixalign.data.split import SPLITS, TEST
from automixalign.data.store import read_split, task_digest, tasks_of
from automixalign.errors import CacheError, ModelError
from automixalign.settings import ScoringSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Floats = npt.NDArray[np.float64]

CHOSEN, REJECTED, LOSS = "chosen_logps", "rejected_logps", "loss"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Scorer:
    """A model to score with.

    Args:
        model: the policy, on its device.
        batch_size: sequences a forward pass.
        precision: `auto`, `fp32` or `bf16`, of the forward pass; log-softmax is always fp32.
    """

    model: "PreTrainedModel"
    batch_size: int
    precision: str

    @torch.inference_mode()
    def logps(self, table: pa.Table) -> tuple[Floats, Floats]:
        """Log-probability of each pair's chosen and rejected completion, summed over tokens, shape (pairs,).

        Raises:
            ModelError: the model gives values that are not finite.
        """
        prompts = table.column("prompt_ids").to_pylist()
        sides = [table.column(name).to_pylist() for name in ("chosen_ids", "rejected_ids")]
        sequences = [(prompt, side) for part in sides for prompt, side in zip(prompts, part, strict=True)]
        # Alike lengths together: padding is what a batch of mixed lengths mostly computes.
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i][0]) + len(sequences[i][1]))
        result = np.zeros(len(sequences))
        self.model.eval()
        batches = [order[at : at + self.batch_size] for at in range(0, len(order), self.batch_size)]
        for batch in progress.current().track(batches, len(batches)):
            result[batch] = self._batch([sequences[index] for index in batch])
        if not np.isfinite(result).all():
            bad = table.column("pair_id")[int(np.flatnonzero(~np.isfinite(result))[0]) % len(prompts)]
            raise ModelError(f"the model gives a log-probability that is not finite, first for pair {bad}")
        return result[: len(prompts)], result[len(prompts) :]

    def _batch(self, sequences: list[tuple[list[int], list[int]]]) -> Floats:
        device = self.model.device
        longest = max(len(prompt) + len(side) for prompt, side in sequences)
        shortest_prompt = min(len(prompt) for prompt, _ in sequences)
        ids = torch.zeros(len(sequences), longest, dtype=torch.long)
        attention = torch.zeros_like(ids)
        completion = torch.zeros_like(ids, dtype=torch.bool)
        for row, (prompt, side) in enumerate(sequences):
            length = len(prompt) + len(side)
            ids[row, :length] = torch.tensor(prompt + side)
            attention[row, :length] = 1
            completion[row, len(prompt) : length] = True
        ids, attention, completion = ids.to(device), attention.to(device), completion.to(device)
        # The logits of the shared prompt are never looked at: leave them out of the largest product.
        keep = longest - shortest_prompt + 1
        with models.autocast(self.precision):
            output = self.model(ids, attention_mask=attention, use_cache=False, logits_to_keep=keep)
        logits = output.logits[:, -keep:-1].float()
        targets, mask = ids[:, 1 - keep :], completion[:, 1 - keep :]
        picked = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
        return np.asarray((picked * mask).double().sum(1).cpu().numpy())


def dpo_loss(margins: Floats) -> Floats:
    """-log sigmoid of the margin beta * (chosen log-ratio - rejected log-ratio), without overflow."""
    return np.asarray(np.logaddexp(0.0, -margins))


def margins(scores: pa.Table, reference: pa.Table, beta: float) -> Floats:
    """beta * (chosen log-ratio - rejected log-ratio) of rows that stand in the same order in both tables."""
    chosen = column(scores, CHOSEN) - column(reference, CHOSEN)
    rejected = column(scores, REJECTED) - column(reference, REJECTED)
    return beta * (chosen - rejected)


def column(table: pa.Table, name: str) -> Floats:
    """A numeric column as float64."""
    return np.asarray(table.column(name).to_numpy(), dtype=np.float64)


def write_reference_logps(
    settings: ScoringSettings, data: Path, base_model: Path, output: Path
) -> dict[str, Any]:
    """Score every pair of every task under the reference model: a cache a task, `OUTPUT/TASK`.

    Returns:
        The caches' manifests, by task.
    """
    scorer = Scorer(models.load_full_model(base_model), settings.batch_size, settings.precision)
    model = files.digest(base_model)
    with files.replacing(output) as folder:
        manifests = {}
        for task in tasks_of(data):
            tables = {split: _scores(scorer, read_split(data, task, split)) for split in SPLITS}
            manifests[task] = _write_cache(folder / task, task, tables, data, model, settings)
    return manifests


def write_specialist_losses(
    settings: ScoringSettings,
    task: str,
    data: Path,
    reference: Path,
    base_model: Path,
    specialist: Path,
    evaluation: Path,
    output: Path,
) -> dict[str, Any]:
    """Cache the DPO loss of every pair of `task` under its own specialist.

    The test split was scored when the specialist was evaluated, so it is taken from there.

    Returns:
        The manifest, with the mean loss of each split: training pairs far below held-out ones mean that the
        specialist has memorised them, and that its losses are too low a reference.
    """
    scorer = Scorer(models.load_model(specialist, base_model), settings.batch_size, settings.precision)
    tables, means = {}, {}
    for split in SPLITS:
        pairs = read_split(data, task, split)
        ids = pairs.column("pair_id").to_pylist()
        if split == TEST:
            scores = join(read_scores(evaluation, task), ids, f"evaluation of {task}")
        else:
            scores = _scores(scorer, pairs)
        known = join(read_cache(reference / task, split), ids, f"reference log-probs of {task}, {split}")
        losses = dpo_loss(margins(scores, known, settings.beta))
        scores = scores.select(["pair_id", CHOSEN, REJECTED]).append_column(LOSS, pa.array(losses))
        tables[split] = scores
        means[split] = float(losses.mean()) if len(losses) else None
    with files.replacing(output) as folder:
        model = files.digest(specialist)
        return _write_cache(folder, task, tables, data, model, settings, mean_loss=means)


def _scores(scorer: Scorer, pairs: pa.Table) -> pa.Table:
    chosen, rejected = scorer.logps(pairs) if len(pairs) else (np.zeros(0), np.zeros(0))
    return pa.table({"pair_id": pairs.column("pair_id"), CHOSEN: chosen, REJECTED: rejected})


def _write_cache(
    folder: Path,
    task: str,
    tables: Mapping[str, pa.Table],
    data: Path,
    model: str,
    settings: ScoringSettings,
    **facts: Any,
) -> dict[str, Any]:
    """A cache is a folder with a table a split and a manifest of the task, data and model it belongs to."""
    for split, table in tables.items():
        files.write_table(folder / f"{split}.parquet", table)
    manifest = {
        "task": task,
        "data": task_digest(data, task),
        "model": model,
        "beta": settings.beta,
        "precision": settings.precision,
        "pairs": {split: len(table) for split, table in tables.items()},
        **facts,
    }
    files.write_json(folder / MANIFEST, manifest)
    return manifest


def read_cache(cache: Path, split: str) -> pa.Table:
    """One split of a task's cache: `pair_id`, `chosen_logps`, `rejected_logps`, a specialist's also `loss`."""
    return files.read_table(cache / f"{split}.parquet")


def cache_task(cache: Path) -> str:
    """The task a cache belongs to."""
    return str(files.read_json(cache / MANIFEST)["task"])


def check_cache(cache: Path, data: Path, task: str) -> None:
    """Refuse a cache that was computed for other data than `data` holds.

    Raises:
        CacheError: naming cache and task.
    """
    if not (cache / MANIFEST).exists():
        raise CacheError(f"{cache}: there is no cache of task {task} here")
    if files.read_json(cache / MANIFEST)["data"] != task_digest(data, task):
        raise CacheError(f"{cache}: was not computed for this data of task {task}; compute it again")


def read_scores(evaluation: Path, task: str) -> pa.Table:
    """An evaluation's scores of one task: `pair_id`, `chosen_logps`, `rejected_logps`, `margin`, `loss`."""
    return files.read_table(evaluation / f"{task}.parquet")


def join(cache: pa.Table, pair_ids: Sequence[str], what: str) -> pa.Table:
    """The cache's rows in the order of `pair_ids`.

    Raises:
        CacheError: an id is missing or stands twice: a default would silently train on a wrong loss.
    """
    known = cache.column("pair_id").to_pylist()
    place = {pair_id: row for row, pair_id in enumerate(known)}
    if len(place) != len(known):
        raise CacheError(f"{what}: the cache holds a pair id twice")
    missing = [pair_id for pair_id in pair_ids if pair_id not in place]
    if missing:
        raise CacheError(
            f"{what}: {len(missing)} of {len(pair_ids)} pairs are missing in the cache, first {missing[0]}"
        )
    return cache.take(pa.array([place[pair_id] for pair_id in pair_ids], type=pa.int64()))
