"""The training of a specialist: DPO on one task."""

from pathlib import Path
from typing import Any

from automixalign.config.training import SpecialistSettings, specialist_name
from automixalign.data.store import TRAIN
from automixalign.method.mixer import Mixer
from automixalign.training.job import Training
from automixalign.training.train import read_pairs, train_policy
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
        pairs = read_pairs(self, self.task, TRAIN)
        if self.pair_ids is not None:
            pairs = pairs.filter([pair_id in self.pair_ids for pair_id in pairs.column("pair_id").to_pylist()])
        mixer = Mixer({self.task: len(pairs)}, self.settings.seed)
        validation = Validation.of(self.settings, lambda split: {self.task: read_pairs(self, self.task, split)})
        return train_policy(self, {self.task: pairs}, mixer, scratch, validation=validation)
