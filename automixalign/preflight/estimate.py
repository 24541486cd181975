"""What a run's trainings will cost, from its data and a few steps of a model of the same shape."""

import tempfile
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from automixalign.config.experiment import Experiment
from automixalign.config.plan import Plan
from automixalign.data.store import IDS, TRAIN, VALIDATION, read_card, read_split
from automixalign.models.inspect import Outline
from automixalign.models.prepare import transformers_silenced
from automixalign.preflight.memory import TRAINED, linear_parameters, weights_bytes
from automixalign.preflight.trainings import PlannedTraining
from automixalign.system import shortages
from automixalign.system.processors import available_processors

_FORWARD = 1 / 3
"""The share of a forward pass in the time of a step; the backward pass takes twice as long."""


class TrainingCost(NamedTuple):
    """What one training will take."""

    name: str
    steps: int
    tokens_per_step: float
    """Of both sides of each pair, each with the prompt."""
    seconds: float
    """With the validations, and the measurements of gradients."""

    @property
    def tokens(self) -> float:
        """Of the whole training."""
        return self.steps * self.tokens_per_step


class Estimate(NamedTuple):
    """What the trainings of an experiment will take, if every process is as fast as this machine's device."""

    trainings: list[TrainingCost]
    device: str
    micro_batch: int
    """Pairs of a forward pass."""
    step_seconds: float
    """Of a micro-batch of pairs of mean length, forward, backward and the optimiser."""
    peak_bytes: int
    """See `Trial`, with a micro-batch of the longest pairs."""
    parameters: int
    trained_parameters: int
    weights_bytes: int
    """Of the model's weights, with the adapter."""
    processes: int
    """Processes of a training."""
    workers: int
    """Trainings at a time."""

    @property
    def seconds(self) -> float:
        """Of all trainings. On a CPU, each of the trainings at a time has its share of the processors."""
        seconds = [each.seconds for each in self.trainings]
        return sum(seconds) if self.device != "cpu" else max(sum(seconds) / self.workers, *seconds)

    @property
    def gradients_bytes(self) -> int:
        """Of the gradients of the trained parameters."""
        return TRAINED * self.trained_parameters

    @property
    def optimiser_bytes(self) -> int:
        """Of AdamW's two moments."""
        return 2 * self.gradients_bytes


def estimate(
    experiment: Experiment, outline: Outline, data: Path, trainings: list[PlannedTraining], workers: int
) -> Estimate:
    """Time a few steps of a model with random weights, and derive the cost of each training.

    Args:
        experiment: the configuration.
        outline: of the base model.
        data: the prepared data of all tasks.
        trainings: with known steps.
        workers: how many trainings a run does at a time on this machine.

    Raises:
        ResourceError: memory ran out.
    """
    with shortages.name_shortages("ama validate --estimate", "train_generalist"):
        from automixalign.models.load import device, uses_bf16
        from automixalign.preflight.trial import time_steps

        training = experiment.training
        world = training.nodes * training.processes
        micro_batch = training.micro_batch_size or training.batch_size // world
        tables = {task.name: read_split(data, task.name, TRAIN, IDS) for task in experiment.tasks}
        means = {task: float(_sizes(table).mean()) for task, table in tables.items()}
        pairs = pa.concat_tables(tables.values())
        sizes = _sizes(pairs)
        typical = pairs.take(_nearest(sizes, float(sizes.mean()), micro_batch))
        longest = pairs.take(_nearest(sizes, float(sizes.max()), micro_batch))
        model = outline.random_model()
        parameters, linear = model.num_parameters(), linear_parameters(model)
        alone = {
            "nodes": 1,
            "processes": 1,
            "fsdp": False,
            "batch_size": len(typical),
            "micro_batch_size": None,
        }
        settings = Plan.of(experiment, defaultdict(str)).specialist
        settings = settings.model_copy(update={"training": training.model_copy(update=alone)})
        threads = max(1, available_processors() // workers)
        with tempfile.TemporaryDirectory() as scratch, transformers_silenced():
            trial = time_steps(settings, model, outline.tokenizer, longest, typical, Path(scratch), threads)
    seconds_per_token = trial.seconds / float(_sizes(typical).sum())
    counts = {task["name"]: task["pairs"][VALIDATION] for task in read_card(data)["tasks"]}
    costs = []
    for each in trainings:
        per_pair = sum(share * means[task] for task, share in each.shares.items())
        tokens, steps = training.batch_size * per_pair, each.steps or 0
        validated = sum(min(training.validation_pairs, counts[task]) * means[task] for task in each.shares)
        validations = -(-steps // training.validate_every) if training.validate_every else 0
        work = steps * tokens + validations * validated * _FORWARD
        if each.gradients is not None:
            measured = each.gradients.pairs * sum(means[task] for task in each.shares)
            work += -(-steps // each.gradients.every) * measured
        costs.append(TrainingCost(each.name, steps, tokens, work * seconds_per_token / world))
    return Estimate(
        costs,
        str(device()),
        len(typical),
        trial.seconds,
        trial.peak_bytes,
        parameters,
        trial.trained_parameters,
        weights_bytes(
            parameters,
            linear,
            trial.trained_parameters if training.lora else 0,
            experiment.loading,
            uses_bf16(training.precision),
        ),
        world,
        workers,
    )


def _sizes(pairs: pa.Table) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Tokens of both sides of each pair, each with the prompt."""
    prompt, chosen, rejected = (pc.list_value_length(pairs.column(name)).to_numpy() for name in IDS[1:])
    return np.asarray(2 * prompt + chosen + rejected, dtype=np.int64)


def _nearest(sizes: "np.ndarray[tuple[int], np.dtype[np.int64]]", size: float, count: int) -> pa.Array:
    """The indices of the pairs whose size is nearest."""
    return pa.array(np.argsort(np.abs(sizes - size), kind="stable")[:count])
