"""The training of a specialist: DPO on one task."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from automixalign.config.training import SpecialistSettings, specialist_name
from automixalign.data.store import TRAIN
from automixalign.method.mixer import Mixer
from automixalign.scoring import caches
from automixalign.training.job import Training
from automixalign.training.train import train_policy
from automixalign.training.validation import Validation


class SpecialistTraining(Training):
    """DPO on one task, or on some of its pairs."""

    settings: SpecialistSettings
    task: str
    pair_ids: frozenset[str] | None = None
    """The pairs to train on; None for all."""

    @property
    def name(self) -> str:
        return specialist_name(self.task)

    def run(self, scratch: Path) -> dict[str, Any]:
        pairs = self._read_pairs(TRAIN)[self.task]
        if self.pair_ids is not None:
            pairs = pairs.filter([pair_id in self.pair_ids for pair_id in pairs.column("pair_id").to_pylist()])
        mixer = Mixer({self.task: len(pairs)}, self.settings.seed)
        validation = Validation.of(self.settings, self._read_pairs)
        return train_policy(self, {self.task: pairs}, mixer, scratch, validation=validation)

    def _read_pairs(self, split: str) -> dict[str, pa.Table]:
        return {self.task: caches.read_pairs(self.data, self.reference_logps, self.task, split)}
