"""The specialist's loss L(theta_i, z) of every pair of its task. The excess is measured from it.

If the losses of held-out pairs are much higher than those of the training pairs, the specialist has memorised
its training pairs. The manifest records the difference as `gap`; `memorisation` says when it causes a warning.
`cross_fitting` avoids it.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa

from automixalign.config.training import SpecialistLossesSettings
from automixalign.data.store import IDS, SPLITS, TEST, TRAIN, read_split
from automixalign.scoring import caches
from automixalign.scoring.scorer import pair_losses
from automixalign.steps.step import current_step
from automixalign.storage import files
from automixalign.system.errors import CacheError
from automixalign.training.cross_fitting import cross_fitted_scores
from automixalign.training.memorisation import measure_memorisation, memorisation_warning


def write_specialist_losses(
    settings: SpecialistLossesSettings,
    *,
    task: str,
    data: Path,
    reference_logps: Path,
    scores: Path,
    evaluation: Path,
    output: Path,
    base_model: Path | None = None,
) -> dict[str, Any]:
    """Cache the loss of every pair of a task under its specialist, by pair id.

    Args:
        settings: of the stage.
        task: the task.
        data: the prepared splits.
        reference_logps: the log-probabilities under the reference model.
        scores: what the specialist's training wrote: its log-probabilities of the training pairs.
        evaluation: the evaluation of the specialist, which has scored the held-out splits.
        output: the folder to write.
        base_model: from which the specialists of cross-fitting start; only these need it.

    Returns:
        The manifest, with the mean loss of each split and what `measure_memorisation` returns.

    Raises:
        CacheError: `scores`, the evaluation or `reference_logps` lacks a pair; or cross-fitting has no base
            model.
        DataError: the task is too small for cross-fitting.
    """
    caches.check_cache(scores, data, task)
    if settings.fold is not None and base_model is None:
        raise CacheError(f"cross-fitting of task {task} has no base model to start from")
    tables = {}
    splits = {split: read_split(data, task, split, IDS) for split in SPLITS}
    for split, pairs in splits.items():
        ids = pairs.column("pair_id").to_pylist()
        cache = caches.read_cache(reference_logps / task, split, caches.CHOSEN, caches.REJECTED)
        logps = caches.join(cache, ids, f"reference_logps of {task}, {split}")
        if not ids:
            scored = logps
        elif split != TRAIN:
            folder = evaluation if split == TEST else evaluation / split
            evaluated = caches.read_scores(folder, task, caches.CHOSEN, caches.REJECTED)
            scored = caches.join(evaluated, ids, f"evaluation of {task}, {split}")
        elif settings.fold is not None and base_model is not None:
            scored = cross_fitted_scores(
                settings,
                settings.fold,
                task=task,
                pairs=pairs,
                data=data,
                reference_logps=reference_logps,
                base_model=base_model,
            )
        else:
            own = caches.read_cache(scores, split, caches.CHOSEN, caches.REJECTED)
            scored = caches.join(own, ids, f"scores of {task}, {split}")
        losses = pair_losses(settings.loss, scored, logps, pairs)
        scored = scored.select(["pair_id", caches.CHOSEN, caches.REJECTED])
        tables[split] = scored.append_column(caches.LOSS, pa.array(losses))
    by_split = {split: caches.column(table, caches.LOSS) for split, table in tables.items()}
    memorisation = measure_memorisation(settings, by_split, splits)
    if warning := memorisation_warning(task, memorisation, settings.warn_gap):
        current_step().warn(warning)
    mean_loss = {split: float(losses.mean()) for split, losses in by_split.items() if len(losses)}
    current_step().record.add_metrics({"mean_loss": mean_loss, "memorisation": memorisation["gap"]})
    with files.replacing(output) as folder:
        return caches.write_cache(
            folder,
            task,
            tables,
            data,
            model=files.read_json(scores / caches.MANIFEST)["model"],
            precision=caches.cache_precision(reference_logps / task),
            **settings.loss.model_dump(),
            mean_loss=mean_loss,
            **memorisation,
        )
