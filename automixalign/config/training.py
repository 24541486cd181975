"""Training: its sections of an experiment, and the settings of `train_specialist` and `specialist_losses`."""

import math
import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from automixalign.config.evaluation import ScoringSettings
from automixalign.config.settings import Loading, Precision, Quantization, Settings
from automixalign.method.losses import Loss
from automixalign.system.schema import Count, Flag, Natural, NonNegative, Number, Positive, Schema


def specialist_name(task: str) -> str:
    """The name of a task's specialist in the leaderboard."""
    return f"specialist-{task}"


class LoraSpec(Schema):
    """LoRA (arXiv 2106.09685) through peft."""

    rank: Annotated[Count, Field(le=8192)] = 16
    """Rank of the update of each matrix."""
    alpha: Positive = 32.0
    """peft scales the update by `alpha / rank`; with `rslora`, by `alpha / sqrt(rank)`."""
    target_modules: Annotated[list[str], Field(min_length=1)] | Literal["all-linear"] = "all-linear"
    """The modules that get an adapter, as peft names them."""
    quantize: Quantization | None = None
    """Hold the frozen weights of all linear layers but the head in 4 bits (nf4, arXiv 2305.14314) or 8 bits
    (arXiv 2208.07339), by bitsandbytes: `pip install 'automixalign[quantize]'`. The reference, specialists and
    generalists are all scored on this base; merges and exports have the base in full (docs/gpu.md)."""
    dora: Flag = False
    """Train the norms of the rows of each matrix apart from their directions (DoRA, arXiv 2402.09353)."""
    rslora: Flag = False
    """Scale the update by `alpha / sqrt(rank)`, which suits high ranks (arXiv 2312.03732). The default `alpha`
    is then a factor of 8 for rank 16, in place of 2."""


class Budget(Schema):
    """How long to train: optimiser steps, or epochs over the phase's training pairs."""

    steps: Count | None = None
    """Optimiser steps. Give either this or `epochs`."""
    epochs: Annotated[Positive, Field(le=10_000)] | None = None
    """Passes over the training pairs."""
    learning_rate: Positive | None = None
    """Replaces `training.learning_rate` for this phase."""

    @model_validator(mode="after")
    def _check_exactly_one(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of 'steps' and 'epochs'")
        return self

    def count_steps(self, pairs: int, batch_size: int) -> int:
        """The optimiser steps of a training on `pairs` pairs, `batch_size` of them a step."""
        if self.steps is not None:
            return self.steps
        return math.ceil((self.epochs or 0.0) * pairs / batch_size)

    def halved(self) -> Self:
        """The same number of passes over half of the pairs."""
        return self if self.steps is None else self.model_copy(update={"steps": -(-self.steps // 2)})


class BudgetSpec(Schema):
    """How long the two phases train; every generalist gets the same."""

    specialist: Budget
    """How long each specialist trains."""
    generalist: Budget
    """How long each generalist trains."""


class TrainingSpec(Loss):
    """What every training of the experiment shares, so that methods are compared fairly."""

    batch_size: Annotated[Count, Field(le=2**20)]
    """Pairs of one optimiser step, over all processes and accumulated micro-batches."""
    micro_batch_size: Count | None = None
    """Pairs of one forward pass of a process. Gradient accumulation fills the rest of `batch_size`."""
    processes: Annotated[Count, Field(le=256)] = 1
    """Processes on one machine, one for each GPU. They share every step; each takes a slice of its pairs."""
    nodes: Count = 1
    """Machines, each with `processes` processes. Several need Kubeflow Trainer (`cluster.train_job`)."""
    fsdp: Flag = False
    """Divide parameters, gradients and optimiser state among the processes (FSDP2, arXiv 2304.11277), for a
    model that does not fit one GPU. Otherwise each process holds all of them."""
    learning_rate: Positive
    """Peak learning rate of both phases."""
    lr_scheduler: Literal["constant", "linear", "cosine"] = "linear"
    """How the learning rate changes after the warm-up."""
    warmup_steps: Natural = 0
    """Steps over which the learning rate rises from 0."""
    warmup: Annotated[Number, Field(ge=0, le=1)] | None = None
    """The warm-up as a share of a training's steps, in place of `warmup_steps`. It suits specialists and
    generalists alike, whose steps differ."""
    weight_decay: NonNegative = 0.0
    """Weight decay of AdamW."""
    max_grad_norm: NonNegative = 1.0
    """Norm that gradients are clipped to; 0 does not clip."""
    nll_weight: NonNegative = 0.0
    """Weight of TRL's `sft` term, the same for every method: the negative log-likelihood of the chosen answers,
    as a mean over all tokens of a step. 0 is plain DPO. With .1 to .5, small models passed 1.4 to 3 times as
    many generations on both setups that tried it. The presets for small models set .2 (docs/results.md)."""
    precision: Precision = "auto"
    """`auto`: bf16 autocast on CUDA that has it, otherwise fp32. CPUs without AMX take longer in bf16; those
    without AVX512-BF16 take tens of times as long."""
    gradient_checkpointing: Flag = False
    """Compute activations again in the backward pass instead of storing them."""
    lora: LoraSpec | None = None
    """Train a LoRA adapter instead of the full model."""
    trainable: Annotated[list[str], Field(min_length=1)] | None = None
    """Regular expressions. Full fine-tuning changes only the parameters whose name matches one of them."""
    checkpoint_every: Natural = 50
    """Steps between checkpoints; 0 for none by steps. On a cluster, checkpoints need an `output` in S3."""
    checkpoint_minutes: NonNegative = 0.0
    """Also save a checkpoint when this many minutes have passed since the last one; 0 for none by time. With
    `checkpoint_every: 0`, a kill costs about this much time at most, whatever a step takes."""
    validate_every: Natural = 0
    """Steps between validations; 0 for none. A validation scores a sample of the validation pairs, also after
    the last step. The report draws each task's gap over the steps. A specialist is validated on its own task;
    its loss takes the place of the gap."""
    validation_pairs: Count = 128
    """Sampled validation pairs of each task: the same for every method and every step."""
    keep: Literal["last", "best"] = "last"
    """Which weights become the model: those of the last step, or of the validated step with the smallest worst
    gap; the earliest of equal ones. For a specialist, it is the step with the smallest loss. `best` uses the
    validation split, as choosing a model does, and never the test split. It costs disk: the best weights so far
    are written beside the checkpoints, and linked or copied into each of them."""

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.warmup is not None and self.warmup_steps:
            raise ValueError("'warmup' and 'warmup_steps' exclude each other; remove one")
        if self.fsdp and self.lora is not None and self.lora.quantize:
            raise ValueError("'lora.quantize': 'fsdp' cannot divide quantised weights; each GPU holds them all")
        if self.lora is not None and self.trainable is not None:
            raise ValueError("'lora' and 'trainable' exclude each other")
        if self.batch_size % (self.micro_batch_size or 1):
            raise ValueError("'batch_size' must be a multiple of 'micro_batch_size'")
        if self.batch_size % ((self.micro_batch_size or 1) * self.nodes * self.processes):
            raise ValueError(
                "'batch_size' must be a multiple of 'processes' times 'micro_batch_size', times 'nodes'"
            )
        if self.fsdp and self.validate_every:
            raise ValueError("'validate_every' needs whole parameters, which 'fsdp' divides")
        if self.keep == "best" and not self.validate_every:
            raise ValueError("'keep: best' needs 'validate_every'")
        if self.fsdp and self.nodes * self.processes == 1:
            raise ValueError("'fsdp' divides a model among 'processes', and there is one")
        for pattern in self.trainable or []:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"'trainable': {pattern!r} is no regular expression: {error}") from error
        return self

    def count_warmup(self, steps: int) -> int:
        """The steps of the warm-up of a training of `steps` steps; a part of a step counts as one."""
        return self.warmup_steps if self.warmup is None else math.ceil(self.warmup * steps)

    @property
    def pairs_per_pass(self) -> int:
        """Pairs of one forward pass of a process."""
        return self.micro_batch_size or max(1, self.batch_size // (self.processes * self.nodes))

    @property
    def loss(self) -> Loss:
        """The preference loss alone."""
        return Loss(**{key: getattr(self, key) for key in Loss.model_fields})


class SpecialistLossesSpec(Schema):
    """The losses that a generalist's excess is measured against."""

    cross_fit: Flag = False
    """Two-fold cross-fitting: a specialist that was trained on one half of a task's training pairs scores the
    other half. Specialists then cost twice as much; use it where they memorise their pairs."""
    warn_gap: Positive = 0.1
    """Warn if a specialist's mean loss on held-out pairs exceeds that on its training pairs by more than this
    (in nats), if its training saw each pair at least twice, and if the 95 % interval of the difference excludes
    0: it has memorised them. This is not the gap between a generalist and a specialist."""


class TrainingSettings(Settings):
    """What the settings of specialists and generalists share."""

    training: TrainingSpec
    loading: Loading = Loading()
    budget: Budget
    scoring: ScoringSettings | None = None
    """How to score the validation pairs; None without validation."""


class SpecialistSettings(TrainingSettings):
    """Of `train_specialist`."""

    score_precision: Precision | None = None
    """In which the trained specialist scores its own training pairs; None if nothing reads these scores."""

    def for_a_half(self) -> Self:
        """The same number of passes over half of the pairs, validated only if that chooses the weights."""
        scoring = self.scoring if self.training.keep == "best" else None
        return self.model_copy(update={"budget": self.budget.halved(), "scoring": scoring})


class SpecialistLossesSettings(ScoringSettings):
    """Of `specialist_losses`."""

    loss: Loss
    warn_gap: float
    budget: Budget | None = None
    """Of the specialists; with `pairs_per_step` it says how often a training saw each pair."""
    pairs_per_step: int | None = None
    """Of the specialists' trainings."""
    fold: SpecialistSettings | None
    """How to train on one half of a task's pairs; None without cross-fitting."""
