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
from automixalign.models.load import load_model
from automixalign.scoring import caches
from automixalign.scoring.scorer import Scorer, pair_losses
from automixalign.steps.step import current_step
from automixalign.storage import files
from automixalign.training.cross_fitting import cross_fitted_scores
from automixalign.training.memorisation import measure_memorisation, memorisation_warning


def write_specialist_losses(
    settings: SpecialistLossesSettings,
    *,
    task: str,
    data: Path,
    reference_logps: Path,
    base_model: Path,
    specialist: Path,
    evaluation: Path,
    output: Path,
) -> dict[str, Any]:
    """Cache the loss of every pair of a task under its specialist, by pair id.

    Args:
        settings: of the stage.
        task: the task.
        data: the prepared splits.
        reference_logps: the log-probabilities under the reference model.
        base_model: the base model of a LoRA specialist.
        specialist: the specialist of the task.
        evaluation: the evaluation of the specialist; it has scored the held-out splits already.
        output: the folder to write.

    Returns:
        The manifest, with the mean loss of each split and what `measure_memorisation` returns.

    Raises:
        CacheError: the evaluation or `reference_logps` lacks a pair.
        DataError: the task is too small for cross-fitting.
    """
    model = load_model(specialist, base_model, settings.loading, settings.precision)
    scorer = Scorer(model, settings.batch_size, settings.precision, settings.loading)
    tables = {}
    splits = {split: read_split(data, task, split, IDS) for split in SPLITS}
    for split, pairs in splits.items():
        ids = pairs.column("pair_id").to_pylist()
        if split != TRAIN and len(pairs):
            folder = evaluation if split == TEST else evaluation / split
            evaluated = caches.read_scores(folder, task, caches.CHOSEN, caches.REJECTED)
            scores = caches.join(evaluated, ids, f"evaluation of {task}, {split}")
        elif split == TRAIN and settings.fold is not None:
            scores = cross_fitted_scores(
                settings,
                settings.fold,
                task=task,
                pairs=pairs,
                data=data,
                reference_logps=reference_logps,
                base_model=base_model,
            )
        else:
            scores = scorer.scores(pairs)
        cache = caches.read_cache(reference_logps / task, split, caches.CHOSEN, caches.REJECTED)
        logps = caches.join(cache, ids, f"reference_logps of {task}, {split}")
        losses = pair_losses(settings.loss, scores, logps, pairs)
        scores = scores.select(["pair_id", caches.CHOSEN, caches.REJECTED])
        tables[split] = scores.append_column(caches.LOSS, pa.array(losses))
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
            model=files.digest(specialist),
            precision=settings.precision,
            **settings.loss.model_dump(),
            mean_loss=mean_loss,
            **memorisation,
        )
