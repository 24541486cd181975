"""The specialist's loss of every pair of its task: L(theta_i, z), from which the excess is counted.

A specialist that has trained on a pair for several passes knows it by heart, and its loss there is too low a
reference. The gap between held-out and training pairs is therefore recorded, and a large one warned about;
two-fold cross-fitting closes it: each half of the training pairs is scored by a specialist that was trained on
the other half only, in as many passes.
"""

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from automixalign.config.training import SpecialistLossesSettings, specialist_name
from automixalign.data.store import IDS, SPLITS, TEST, TRAIN, read_split
from automixalign.models.load import load_model
from automixalign.scoring import caches
from automixalign.scoring.scorer import Scorer, pair_losses
from automixalign.steps.step import current_step
from automixalign.storage import files
from automixalign.system.errors import DataError
from automixalign.training.launch import launch
from automixalign.training.train import SpecialistTraining

_HELD_OUT = [split for split in SPLITS if split != TRAIN]


def write_specialist_losses(
    settings: SpecialistLossesSettings,
    task: str,
    data: Path,
    reference_logps: Path,
    base_model: Path,
    specialist: Path,
    evaluation: Path,
    output: Path,
) -> dict[str, Any]:
    """Cache the loss of every pair of `task` under its specialist, keyed by pair id.

    The test split was scored when the specialist was evaluated, so it is taken from there.

    Returns:
        The manifest, with the mean loss of each split and `gap`: the mean over all held-out pairs minus that of
        the training pairs, as they are cached. A gap above `warn_gap` is warned about.

    Raises:
        CacheError: the evaluation or the reference log-probabilities lack a pair.
        DataError: the task is too small to be cross-fitted.
    """
    scorer = _scorer(settings, specialist, base_model)
    splits = {split: read_split(data, task, split, IDS) for split in SPLITS}
    tables = {}
    for split, pairs in splits.items():
        ids = pairs.column("pair_id").to_pylist()
        if split == TEST:
            known = caches.read_scores(evaluation, task, caches.CHOSEN, caches.REJECTED)
            scores = caches.join(known, ids, f"evaluation of {task}")
        elif split == TRAIN and settings.fold is not None:
            scores = _cross_fitted(settings, task, pairs, data, reference_logps, base_model)
        else:
            scores = scorer.scores(pairs)
        cache = caches.read_cache(reference_logps / task, split, caches.CHOSEN, caches.REJECTED)
        known = caches.join(cache, ids, f"reference_logps of {task}, {split}")
        losses = pair_losses(settings.loss, scores, known, pairs)
        scores = scores.select(["pair_id", caches.CHOSEN, caches.REJECTED])
        tables[split] = scores.append_column(caches.LOSS, pa.array(losses))
    by_split = {split: caches.column(table, caches.LOSS) for split, table in tables.items()}
    held_out = np.concatenate([by_split[split] for split in _HELD_OUT])
    gap = float(held_out.mean() - by_split[TRAIN].mean())
    if gap > settings.warn_gap:
        current_step().warn(_gap_warning(settings, specialist_name(task), gap))
    mean_loss = {split: float(losses.mean()) for split, losses in by_split.items() if len(losses)}
    current_step().record.add_metrics({"mean_loss": mean_loss, "gap": gap})
    with files.replacing(output) as folder:
        return caches.write_cache(
            folder,
            task,
            tables,
            data,
            model=files.digest(specialist),
            precision=settings.precision,
            **settings.loss.model_dump(),
            cross_fit=settings.fold is not None,
            mean_loss=mean_loss,
            gap=gap,
        )


def folds(pairs: pa.Table, seed: int) -> tuple[frozenset[str], frozenset[str]]:
    """Halve pairs by prompt, so that no prompt stands on both sides: the pair ids of either half.

    Raises:
        DataError: there is only one prompt.
    """
    groups: dict[bytes, list[str]] = {}
    for row in pairs.select(["pair_id", "prompt_ids"]).to_pylist():
        key = hashlib.sha256(f"{seed} {row['prompt_ids']}".encode()).digest()
        groups.setdefault(key, []).append(row["pair_id"])
    if len(groups) < 2:
        raise DataError("specialist_losses.cross_fit: the training pairs have one prompt only; it needs two")
    halves: tuple[list[str], list[str]] = ([], [])
    for key in sorted(groups):
        min(halves, key=len).extend(groups[key])
    return frozenset(halves[0]), frozenset(halves[1])


def _cross_fitted(
    settings: SpecialistLossesSettings,
    task: str,
    pairs: pa.Table,
    data: Path,
    reference_logps: Path,
    base_model: Path,
) -> pa.Table:
    """Scores of the training pairs, each by a specialist that has not seen its prompt."""
    assert settings.fold is not None  # noqa: S101  the caller asked for it
    first, second = folds(pairs, settings.seed)
    ids = pairs.column("pair_id").to_pylist()
    parts = []
    for trained_on, scored in ((first, second), (second, first)):
        with tempfile.TemporaryDirectory() as scratch:
            model = Path(scratch) / "model"
            log = Path(scratch) / "trajectory.jsonl"
            launch(
                SpecialistTraining(
                    settings=settings.fold,
                    task=task,
                    pair_ids=trained_on,
                    data=data,
                    reference_logps=reference_logps,
                    base_model=base_model,
                    output=model,
                    trajectory=log,
                )
            )
            rows = pairs.filter([pair_id in scored for pair_id in ids])
            parts.append(_scorer(settings, model, base_model).scores(rows))
    return caches.join(pa.concat_tables(parts), ids, f"cross-fitted scores of {task}")


def _scorer(settings: SpecialistLossesSettings, model: Path, base_model: Path) -> Scorer:
    return Scorer(load_model(model, base_model), settings.batch_size, settings.precision)


def _gap_warning(settings: SpecialistLossesSettings, name: str, gap: float) -> str:
    if settings.fold is not None:
        remedy = "even cross-fitted; the splits differ"
    else:
        remedy = "it memorised them; train it less, give it more data or set specialist_losses.cross_fit"
    return (
        f"{name}: its held-out loss lies {gap:.2f} above that of its training pairs (warn_gap is "
        f"{settings.warn_gap:g}): {remedy}"
    )
