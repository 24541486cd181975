"""Two-fold cross-fitting: score each half of a task's training pairs by a specialist of the other half.

A specialist that was trained on a pair several times has memorised it, and its loss of the pair is too low.
"""

import hashlib
import tempfile
from pathlib import Path

import pyarrow as pa

from automixalign.config.training import SpecialistLossesSettings, SpecialistSettings
from automixalign.data.store import TRAIN
from automixalign.models.load import resolved
from automixalign.scoring import caches
from automixalign.scoring.job import Scoring
from automixalign.system.errors import DataError
from automixalign.training.launch import launch
from automixalign.training.specialist import SpecialistTraining


def cross_fitted_scores(
    settings: SpecialistLossesSettings,
    fold: SpecialistSettings,
    *,
    task: str,
    pairs: pa.Table,
    data: Path,
    reference_logps: Path,
    base_model: Path,
) -> pa.Table:
    """Log-probabilities of the training pairs, each under a specialist that was not trained on its prompt.

    Args:
        settings: of the scoring; its seed divides the pairs.
        fold: how to train on one half.
        task: the task.
        pairs: its training pairs.
        data: the prepared splits.
        reference_logps: the log-probabilities under the reference model.
        base_model: the model from which both specialists start.

    Returns:
        The scores in the order of `pairs`.

    Raises:
        DataError: all pairs have the same prompt.
        CacheError: another machine computed the reference log-probabilities in another precision.
    """
    caches.check_precision(reference_logps, [task], resolved(settings.precision))
    first, second = halves(pairs, settings.seed)
    ids = pairs.column("pair_id").to_pylist()
    parts = []
    for trained, scored in ((first, second), (second, first)):
        with tempfile.TemporaryDirectory() as scratch:
            training = SpecialistTraining(
                settings=fold,
                task=task,
                pair_ids=trained,
                data=data,
                reference_logps=reference_logps,
                base_model=base_model,
                output=Path(scratch) / "model",
                trajectory=Path(scratch) / "trajectory.jsonl",
            )
            launch(training)
            scoring = Scoring(
                model=training.output,
                base_model=base_model,
                data=data,
                loading=settings.loading,
                batch_size=settings.batch_size,
                precision=settings.precision,
                pairs=[(task, TRAIN)],
                pair_ids=scored,
            )
            # This pod has the processes of the trainings.
            parts.append(scoring.scores(fold.training.processes)[task, TRAIN])
    return caches.join(pa.concat_tables(parts), ids, f"cross-fitted scores of {task}")


def halves(pairs: pa.Table, seed: int) -> tuple[frozenset[str], frozenset[str]]:
    """Divide pairs in two, all pairs of a prompt on one side; return the pair ids of either half.

    Raises:
        DataError: all pairs have the same prompt.
    """
    by_prompt: dict[bytes, list[str]] = {}
    for row in pairs.select(["pair_id", "prompt_ids"]).to_pylist():
        key = hashlib.sha256(f"{seed} {row['prompt_ids']}".encode()).digest()
        by_prompt.setdefault(key, []).append(row["pair_id"])
    if len(by_prompt) < 2:
        raise DataError("specialist_losses.cross_fit: the training pairs have one prompt only; it needs two")
    first: list[str] = []
    second: list[str] = []
    for key in sorted(by_prompt):
        min(first, second, key=len).extend(by_prompt[key])
    return frozenset(first), frozenset(second)
