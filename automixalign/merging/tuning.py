"""Merges whose task weights are searched on the validation split.

A try merges the specialists with some weights, and scores the merge as `evaluate` does. The score is the worst
gap: the largest of the tasks' means of (loss - specialist's loss). The test split has no part in it.
"""

import math
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from automixalign.config.merges import MergeSettings, Tuning
from automixalign.data.store import VALIDATION
from automixalign.merging.merge import merge_facts, merge_specialists, staged_merge
from automixalign.method import merge_methods
from automixalign.method.weight_search import coordinate_search
from automixalign.models.load import load_full_model, resolved
from automixalign.scoring import caches
from automixalign.scoring.scorer import Scorer, pair_losses
from automixalign.steps.step import current_step
from automixalign.storage import files
from automixalign.system.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ValidationPairs:
    """The validation pairs, read once for all tries: task -> its pairs, as `caches.read_pairs` returns them."""

    tables: Mapping[str, pa.Table]

    @classmethod
    def read(cls, tasks: Iterable[str], data: Path, reference_logps: Path, losses: Path) -> Self:
        """Read the validation pairs.

        Args:
            tasks: their names.
            data: the prepared splits.
            reference_logps: the caches of the reference log-probabilities, `TASK/`.
            losses: the specialists' caches, `TASK/`.

        Raises:
            DataError: a task has no validation pairs.
            CacheError: a cache is missing, incomplete, or belongs to other data.
        """
        tables = {
            task: caches.read_pairs(data, reference_logps, task, VALIDATION, losses / task) for task in tasks
        }
        for task, pairs in tables.items():
            if not len(pairs):
                raise DataError(
                    f"task {task} has no validation pairs, on which 'weights: tuned' of a merge is chosen; "
                    "raise split.validation, or give the weights"
                )
        return cls(tables)

    def __len__(self) -> int:
        return sum(map(len, self.tables.values()))

    def gaps(self, model: "PreTrainedModel", tuning: Tuning) -> dict[str, float]:
        """Task -> the gap of a model: mean of (loss - specialist's loss)."""
        scorer, gaps = Scorer(model, tuning.batch_size, tuning.precision, tuning.loading), {}
        for task, pairs in self.tables.items():
            reference = pa.table(
                {side: pairs.column(f"ref_{side}") for side in (caches.CHOSEN, caches.REJECTED)}
            )
            losses = pair_losses(tuning.loss, scorer.scores(pairs), reference, pairs)
            gaps[task] = float((losses - caches.column(pairs, "specialist_loss")).mean())
        return gaps


def merge_by_settings(
    settings: MergeSettings, base: Path, specialists: Path, output: Path, to_tune: Sequence[Path]
) -> dict[str, Any]:
    """Merge the specialists as the settings of the stage say; return the facts of the merge.

    Args:
        settings: of the stage.
        base: folder of the base model.
        specialists: folder with the specialists, `TASK/`.
        output: the new folder.
        to_tune: for tuned weights: the prepared splits, and the two kinds of caches of `ValidationPairs.read`.
    """
    folders = {task: specialists / task for task in settings.tasks}
    spec = settings.merge
    if settings.tuning is None:
        weights = None if isinstance(spec.weights, str) else spec.weights
        return merge_specialists(base, folders, spec.method, spec.parameters, output, settings.seed, weights)
    validation = ValidationPairs.read(settings.tasks, *to_tune)
    caches.check_precision(to_tune[1], settings.tasks, resolved(settings.tuning.precision))
    return _merge_tuned(settings, settings.tuning, base, folders, output, validation)


def _merge_tuned(
    settings: MergeSettings,
    tuning: Tuning,
    base: Path,
    specialists: Mapping[str, Path],
    output: Path,
    validation: ValidationPairs,
) -> dict[str, Any]:
    """Merge the specialists with the task weights that have the smallest worst gap on the validation split.

    The first try gives every task the weight of the merge's parameters, or the method's default;
    `coordinate_search` says what follows. Weights with which the merge overflows are left out, with a warning.

    Returns:
        What `merge_specialists` returns, with the weights of the best try; and `tuning`: each of the `tries`
        with its `weights`, `gaps` and `worst_gap`, the number of pairs that were scored, and the seconds.

    Raises:
        ValueError, ModelError: as for `merge_specialists`, about the first try.
    """
    method, parameters = settings.merge.method, settings.merge.parameters
    started, tries, best = time.monotonic(), list[dict[str, Any]](), math.inf
    _, per_model = merge_methods.resolve(method, parameters)
    with (
        files.replacing(output) as merged,
        staged_merge(base, specialists, method, parameters, output, settings.seed) as merge,
        tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as scratch,
        current_step().whole(tuning.tries * len(validation)),
    ):
        candidate = Path(scratch) / "model"

        def worst_gap(weights: Mapping[str, float]) -> float:
            nonlocal best
            shutil.rmtree(candidate, ignore_errors=True)
            try:
                merge(weights, candidate)
                gaps = validation.gaps(load_full_model(candidate, tuning.loading, tuning.precision), tuning)
            except ModelError as error:  # the merge overflows, or its log-probabilities do
                if not tries:
                    raise
                current_step().warn(f"the search leaves out weights that cannot be used: {error}")
                return math.inf
            worst = max(gaps.values())
            tries.append({"weights": dict(weights), "gaps": gaps, "worst_gap": worst})
            if worst < best:
                best = worst
                shutil.rmtree(merged, ignore_errors=True)
                candidate.rename(merged)
            return worst

        coordinate_search(
            worst_gap,
            dict.fromkeys(specialists, per_model["weight"]),
            tuning.tries,
            scale=merge_methods.scale_counts(method, parameters),
        )
    chosen = min(tries, key=lambda one: float(one["worst_gap"]))
    record = current_step().record
    for number, one in enumerate(tries, start=1):
        record.add_metrics(one, step=number)
    cost = {
        "scored_pairs": len(tries) * len(validation),
        "seconds": round(time.monotonic() - started, 1),
    }
    record.add_metrics({"tries": len(tries), **cost})
    facts = merge_facts(method, specialists, parameters, chosen["weights"])
    return {**facts, "tuning": {"tries": tries, **cost}}
