"""The stage `reference_logps`: every pair's log-probabilities under the reference model."""

from pathlib import Path
from typing import Any

from automixalign.config.evaluation import ScoringSettings
from automixalign.data.store import SPLITS, tasks_of
from automixalign.models.load import resolved
from automixalign.scoring.caches import write_cache
from automixalign.scoring.job import Scoring
from automixalign.storage import files


def write_reference_logps(
    settings: ScoringSettings, data: Path, base_model: Path, output: Path
) -> dict[str, Any]:
    """Score every pair of every task under the reference model: a cache a task, `OUTPUT/TASK`.

    Returns:
        Task -> the manifest of its cache.
    """
    tasks = tasks_of(data)
    scoring = Scoring(
        model=base_model,
        data=data,
        loading=settings.loading,
        batch_size=settings.batch_size,
        precision=settings.precision,
        pairs=[(task, split) for task in tasks for split in SPLITS],
    )
    scores = scoring.scores(settings.processes)
    facts = {"model": files.digest(base_model), "precision": resolved(settings.precision)}
    with files.replacing(output) as folder:
        manifests = {}
        for task in tasks:
            tables = {split: scores[task, split] for split in SPLITS}
            manifests[task] = write_cache(folder / task, task, tables, data, **facts)
    return manifests
