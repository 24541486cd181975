"""The training of a specialist: DPO on one task."""

from pathlib import Path
from typing import Any

from automixalign.config.training import SpecialistSettings, specialist_name
from automixalign.method.mixer import Mixer
from automixalign.training.job import Training
from automixalign.training.train import read_training_pairs, train_policy


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
        pairs = read_training_pairs(self, self.task)
        if self.pair_ids is not None:
            pairs = pairs.filter([pair_id in self.pair_ids for pair_id in pairs.column("pair_id").to_pylist()])
        mixer = Mixer({self.task: len(pairs)}, self.settings.seed)
        return train_policy(self, {self.task: pairs}, mixer, scratch)
