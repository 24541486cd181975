"""The training of a specialist: DPO on one task."""

import gc
from pathlib import Path
from typing import Any

import pyarrow as pa

from automixalign.config.training import SpecialistSettings, specialist_name
from automixalign.data.store import TRAIN
from automixalign.method.mixer import Mixer
from automixalign.models.load import resolved
from automixalign.scoring import caches
from automixalign.scoring.job import Scoring
from automixalign.storage import files
from automixalign.training.job import Training
from automixalign.training.train import train_policy
from automixalign.training.validation import Validation


class SpecialistTraining(Training):
    """DPO on one task, or on some of its pairs."""

    settings: SpecialistSettings
    task: str
    pair_ids: frozenset[str] | None = None
    """The pairs to train on; None for all."""
    scores: Path | None = None
    """Folder for the log-probabilities of the training pairs under the trained specialist."""

    @property
    def name(self) -> str:
        return specialist_name(self.task)

    def run(self, scratch: Path) -> dict[str, Any]:
        pairs = self._read_pairs(TRAIN)[self.task]
        if (precision := self.settings.score_precision) is not None:
            caches.check_precision(self.reference_logps, [self.task], resolved(precision))
        if self.pair_ids is not None:
            pairs = pairs.filter([pair_id in self.pair_ids for pair_id in pairs.column("pair_id").to_pylist()])
        mixer = Mixer({self.task: len(pairs)}, self.settings.seed)
        validation = Validation.of(self.settings, self._read_pairs)
        return train_policy(self, {self.task: pairs}, mixer, scratch, validation=validation)

    def finish(self) -> None:
        """Score the training pairs under the model as it was saved, as every other stage loads it.

        The batches are those of the training, so that a change of `evaluation.batch_size` trains nothing again.
        """
        if self.scores is None:
            return
        spec, tables = self.settings.training, {}
        facts: dict[str, Any] = {"model": files.digest(self.output)}
        if self.settings.score_precision is not None:
            facts["precision"] = resolved(self.settings.score_precision)
            gc.collect()  # the training's tensors are in cycles of objects
            scoring = Scoring(
                model=self.output,
                base_model=self.base_model,
                data=self.data,
                loading=self.settings.loading,
                batch_size=2 * spec.pairs_per_pass,
                precision=self.settings.score_precision,
                pairs=[(self.task, TRAIN)],
                reports=False,  # the stage reports its steps
            )
            tables[TRAIN] = scoring.scores(spec.processes)[self.task, TRAIN]
        with files.replacing(self.scores) as folder:
            caches.write_cache(folder, self.task, tables, self.data, **facts)

    def _read_pairs(self, split: str) -> dict[str, pa.Table]:
        return {self.task: caches.read_pairs(self.data, self.reference_logps, self.task, split)}
