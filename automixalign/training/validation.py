"""Score a sample of the validation pairs while a policy trains, and keep the policy of the smallest worst gap.

The sample is a function of the run's seed and the task: the same pairs for every method and every step. The
scored policy is the one that the training would return at this step; with `average_iterates`, the mean so far.
Scoring draws no random number and leaves the weights as they are, so it changes nothing in the training.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from automixalign.config.evaluation import ScoringSettings
from automixalign.config.training import TrainingSettings, TrainingSpec
from automixalign.data.store import VALIDATION
from automixalign.scoring.caches import CHOSEN, REJECTED, Floats, column
from automixalign.scoring.scorer import Scorer, pair_losses
from automixalign.storage import files
from automixalign.system.messages import logger
from automixalign.training.averaging import IterateAverage
from automixalign.training.parameters import load_into, numbered, save

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

FILE = "best.safetensors"


@dataclass(frozen=True)
class Validation:
    """What a training is validated on, and how.

    Args:
        tables: task -> the sampled pairs, with the columns of the training pairs. Without the column
            `specialist_loss`, the loss itself takes the place of the gap.
        spec: of the training.
        scoring: of every log-probability of the run.
    """

    tables: Mapping[str, pa.Table]
    spec: TrainingSpec
    scoring: ScoringSettings

    @classmethod
    def of(
        cls, settings: TrainingSettings, read_pairs: Callable[[str], Mapping[str, pa.Table]]
    ) -> "Validation | None":
        """The validation of a training; None if it has none.

        Args:
            settings: of the training.
            read_pairs: reads a split: task -> its pairs.
        """
        if settings.scoring is None:
            return None
        count, seed = settings.training.validation_pairs, settings.seed
        tables = {task: sample(pairs, count, seed, task) for task, pairs in read_pairs(VALIDATION).items()}
        return cls(tables, settings.training, settings.scoring)


def sample(pairs: pa.Table, count: int, seed: int, task: str) -> pa.Table:
    """`count` of a task's pairs in their order; all of them if there are no more."""
    if len(pairs) <= count:
        return pairs
    return pairs.take(sorted(random.Random(f"validation:{seed}:{task}").sample(range(len(pairs)), count)))


class Validator:
    """Validates the policy of a running training.

    Args:
        validation: pairs and settings.
        policy: the model that trains, or the base model of its adapter; not yet prepared by accelerate, whose
            autocast would also hold here.
        parameters: those that train.
        average: the average of the iterates, if the training returns it.
        accelerator: of the training. Each of its processes scores a share of the pairs.
        micro_batch: pairs of a forward pass of the training. A validation takes no more, so that it fits the
            memory, too.
        folder: where the best policy is kept.
    """

    def __init__(
        self,
        validation: Validation,
        policy: "PreTrainedModel",
        *,
        parameters: list[torch.nn.Parameter],
        average: IterateAverage | None,
        accelerator: "Accelerator",
        micro_batch: int,
        folder: Path,
    ) -> None:
        self.spec = validation.spec
        scoring = validation.scoring
        batch_size = min(scoring.batch_size, 2 * micro_batch)
        self.scorer = Scorer(policy, batch_size, scoring.precision, scoring.loading, reports=False)
        self.tasks = list(validation.tables)
        self.pairs = pa.concat_tables(validation.tables.values())
        self.task = np.repeat(np.arange(len(self.tasks)), [len(table) for table in validation.tables.values()])
        self.policy, self.forward = policy, policy.forward
        self.parameters, self.average, self.accelerator = parameters, average, accelerator
        self.file = folder / FILE
        self.best: dict[str, Any] = {}
        """`step` and `worst` of the best policy so far; empty without one."""
        self.seconds = 0.0

    def validate(self, step: int, last: int) -> dict[str, Any]:
        """Score the policy if this step is to be validated; every process must call this.

        Args:
            step: the optimiser step that has ended.
            last: the last step of the training.

        Returns:
            `loss`: task -> mean over its pairs; for a generalist also `gap`, and `worst_gap`, the largest one.
            Empty if this step is not validated.

        Raises:
            ModelError: a log-probability is not finite.
        """
        if step % self.spec.validate_every and step != last:
            return {}
        started = time.monotonic()
        with self.average.installed() if self.average is not None else nullcontext():
            losses = self._losses()
            means = {"loss": self._means(losses)}
            if "specialist_loss" in self.pairs.column_names:
                means["gap"] = self._means(losses - column(self.pairs, "specialist_loss"))
            measure, by_task = list(means.items())[-1]
            worst = max(by_task.values())
            if self.spec.keep == "best" and (not self.best or worst < self.best["worst"]):
                self.best = {"step": step, "worst": worst}
                if self.accelerator.is_main_process:
                    save(numbered(self.parameters), self.file)
        self.seconds += time.monotonic() - started
        if self.accelerator.is_main_process:
            logger.info("step %s: worst %s of the validation pairs %.4f", step, measure, worst)
        return {**means, "worst_gap": worst} if measure == "gap" else means

    def _losses(self) -> Floats:
        """The loss of every pair under the policy, shape (pairs,); it is the same in every process."""
        own = np.arange(self.accelerator.process_index, len(self.pairs), self.accelerator.num_processes)
        pairs, losses = self.pairs.take(own), np.zeros(len(self.pairs))
        reference = pa.table({side: pairs.column(f"ref_{side}") for side in (CHOSEN, REJECTED)})
        with self._own_forward():
            losses[own] = pair_losses(self.spec.loss, self.scorer.scores(pairs), reference, pairs)
        # Sums of a value and zeros are exact, so the result does not depend on the number of processes.
        shared = torch.from_numpy(losses).to(self.accelerator.device)
        return np.asarray(self.accelerator.reduce(shared, "sum").cpu().numpy())

    @contextmanager
    def _own_forward(self) -> Iterator[None]:
        """Without the autocast of the training: the scorer has the precision of all scoring."""
        prepared = self.policy.forward
        self.policy.forward = self.forward
        try:
            yield
        finally:
            self.policy.forward = prepared

    def _means(self, values: Floats) -> dict[str, float]:
        """Task -> mean over its pairs."""
        return {name: float(values[self.task == number].mean()) for number, name in enumerate(self.tasks)}

    def save(self, checkpoint: Path) -> None:
        """Link the best policy into a checkpoint; the caller keeps `best`."""
        if self.best:
            files.link(self.file, checkpoint / FILE)

    def load(self, checkpoint: Path, best: dict[str, Any]) -> None:
        """Continue from what `save` wrote."""
        self.best = best
        if best and self.accelerator.is_main_process:
            files.link(checkpoint / FILE, self.file)

    def install_best(self) -> None:
        """Set the parameters of the first process, which saves the model, to those of the best policy.

        Raises:
            TrainingError: the file is damaged.
        """
        if self.accelerator.is_main_process:
            load_into(self.parameters, self.file)
