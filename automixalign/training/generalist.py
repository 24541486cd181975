"""The training of a generalist: one policy for all tasks, mixed by a mixer."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from automixalign.config.methods import GeneralistSettings
from automixalign.data.store import TRAIN, tasks_of
from automixalign.scoring import caches
from automixalign.system.errors import CacheError
from automixalign.training.job import Training
from automixalign.training.train import train_policy
from automixalign.training.validation import Validation


class GeneralistTraining(Training):
    """One policy for all tasks, by the method of the settings."""

    settings: GeneralistSettings
    losses: list[Path]
    """For each task, in any order, the folder of its specialist's losses."""
    start: Path | None = None
    """A merge of the specialists to start from; by default the base model."""

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def start_model(self) -> Path:
        return self.start or self.base_model

    def options(self) -> dict[str, Any]:
        method = self.settings.method
        return {**super().options(), **method.all_options(), **method.model_dump(exclude_none=True)}

    def run(self, scratch: Path) -> dict[str, Any]:
        method = self.settings.method
        tables = self.read_tables(TRAIN)
        mixer = method.mixer({task: len(table) for task, table in tables.items()}, self.settings.seed)
        facts = train_policy(
            self,
            tables,
            mixer,
            scratch,
            average_iterates=method.average_iterates,
            validation=Validation.of(self.settings, self.read_tables),
        )
        weights = dict(zip(tables, mixer.weights().round(4).tolist(), strict=True))
        return {**method.model_dump(exclude_none=True), **facts, "weights": weights}

    def read_tables(self, split: str) -> dict[str, pa.Table]:
        """Task -> the pairs of its split with their `reference_logps` and `specialist_loss`.

        Raises:
            CacheError: a cache is missing, incomplete, or belongs to other data.
        """
        folders = {caches.cache_task(folder): folder for folder in self.losses}
        tables = {}
        for task in tasks_of(self.data):
            if task not in folders:
                raise CacheError(f"there are no specialist losses of task {task}")
            tables[task] = caches.read_pairs(self.data, self.reference_logps, task, split, folders[task])
        return tables
