"""The stage `reference_logps`: every pair's log-probabilities under the reference model."""

from pathlib import Path
from typing import Any

from automixalign.config.evaluation import ScoringSettings
from automixalign.data.store import SPLITS, count_pairs, read_split, tasks_of
from automixalign.models.load import load_full_model
from automixalign.scoring.caches import write_cache
from automixalign.scoring.scorer import Scorer
from automixalign.steps.step import current_step
from automixalign.storage import files


def write_reference_logps(
    settings: ScoringSettings, data: Path, base_model: Path, output: Path
) -> dict[str, Any]:
    """Score every pair of every task under the reference model: a cache a task, `OUTPUT/TASK`.

    Returns:
        Task -> the manifest of its cache.
    """
    scorer = Scorer(load_full_model(base_model), settings.batch_size, settings.precision)
    facts = {"model": files.digest(base_model), "precision": settings.precision}
    with files.replacing(output) as folder, current_step().whole(count_pairs(data, SPLITS)):
        manifests = {}
        for task in tasks_of(data):
            tables = {split: scorer.scores(read_split(data, task, split)) for split in SPLITS}
            manifests[task] = write_cache(folder / task, task, tables, data, **facts)
    return manifests
