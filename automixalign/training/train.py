"""Train one policy, a specialist or a generalist: read the pairs, train, write the model and its trajectory."""

import copy
import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from automixalign.config.settings import Quantization
from automixalign.config.training import TrainingSettings
from automixalign.method.mixer import Mixer
from automixalign.models.base_address import read_address
from automixalign.models.divided import read_for_fsdp
from automixalign.models.full_model import save_full_model, write_full_model
from automixalign.models.load import device, load_full_model, load_tokenizer, resolved, uses_bf16
from automixalign.models.trainable import make_trainable
from automixalign.models.weights import first_nonfinite_weight
from automixalign.scoring import caches
from automixalign.steps.jobs.job import rank, world_size
from automixalign.steps.step import current_step
from automixalign.storage import files
from automixalign.system.errors import ConfigError, TrainingError
from automixalign.system.provenance import machine
from automixalign.training.checkpoints.folder import TRAJECTORY
from automixalign.training.checkpoints.schedule import Schedule
from automixalign.training.checkpoints.store import checkpoint_store, checkpoints_location
from automixalign.training.job import Training
from automixalign.training.validation import Validation

if TYPE_CHECKING:
    from transformers import TrainingArguments

_MODEL_CARD = "README.md"
"""peft's template of a model card."""


def train_policy(
    training: Training,
    tables: Mapping[str, pa.Table],
    mixer: Mixer,
    scratch: Path,
    average_iterates: float | None = None,
    validation: Validation | None = None,
) -> dict[str, Any]:
    """Train a policy in every process that shares the work; the first one writes the model.

    Args:
        training: settings and paths.
        tables: task -> its training pairs, as `MixingTrainer` needs them.
        mixer: mixes the tasks, in the order of `tables`.
        scratch: a temporary folder that the processes of a machine share.
        average_iterates: share of the training, from its end, over whose steps the policy is averaged.
        validation: what to validate the policy on, if anything.

    Returns:
        Steps, pairs, trained parameters, seconds and machine; with a validation also the step whose policy is
        the model, and the seconds of validating, which the other seconds do not hold. `checkpoints` is the path
        of those that are kept until all results are written, if there are any.

    Raises:
        TrainingError: the loss or a weight became not finite.
    """
    from datasets import Dataset

    from automixalign.training.trainer import MixingTrainer

    started, spec = time.monotonic(), training.settings.training
    pairs = sum(len(table) for table in tables.values())
    steps = training.settings.budget.count_steps(pairs, spec.batch_size)
    location = checkpoints_location(spec.checkpoint_every, spec.checkpoint_minutes)
    schedule = Schedule(spec.checkpoint_every, spec.checkpoint_minutes) if location else Schedule()
    validated = validation.tables if validation is not None else {}
    # No task has a colon in its name.
    all_tables = {**tables, **{f"validation:{task}": table for task, table in validated.items()}}
    key = checkpoint_key(training, all_tables) if location else "training"
    _compare_precisions(training, list(tables))
    with checkpoint_store(location, key, scratch) as checkpoints:
        start = training.start_model
        tokenizer = load_tokenizer(start)
        if spec.fsdp:
            model = read_for_fsdp(start, spec.precision)
        else:
            model = load_full_model(start, training.settings.loading, spec.precision)
        generation_config = copy.deepcopy(model.generation_config)
        log = checkpoints.folder / TRAJECTORY
        trainer = MixingTrainer(
            make_trainable(model, spec, training.settings.seed),
            training_arguments(training.settings, steps, checkpoints.folder),
            datasets={task: Dataset(table.drop_columns("pair_id")) for task, table in tables.items()},
            mixer=mixer,
            loss=spec.loss,
            nll_weight=spec.nll_weight,
            trajectory=log,
            average_iterates=average_iterates,
            checkpoints=checkpoints,
            schedule=schedule,
            validation=validation,
            loading=training.settings.loading,
            processing_class=tokenizer,
        )
        trainer.train(resume_from_checkpoint=True)
        state_dict = trainer.whole_state_dict()
        if trainer.accelerator.is_main_process:
            # The trainer may have changed it, and `save_pretrained` refuses some changed ones.
            model.generation_config = generation_config
            with files.replacing(training.output) as folder:
                if spec.lora is None:
                    save_full_model(trainer.model, start, folder, state_dict)
                else:
                    _save_adapter(trainer.model, start, folder, state_dict, scratch, spec.lora.quantize)
                _check_weights(folder, steps)
                tokenizer.save_pretrained(folder)
            files.link(log, training.trajectory)
    seconds, validator = time.monotonic() - started, trainer.validator
    facts = {
        "steps": steps,
        "pairs": steps * spec.batch_size,
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "machine": machine(),
        "checkpoints": f"{location.rstrip('/')}/{key}" if location else None,
    }
    if validator is None:
        return {**facts, "seconds": round(seconds, 1)}
    return {
        **facts,
        "seconds": round(seconds - validator.seconds, 1),
        "validation_seconds": round(validator.seconds, 1),
        "kept_step": trainer.kept_step,
    }


def _compare_precisions(training: Training, tasks: Sequence[str]) -> None:
    """Compare the precisions of the training and its validation with that of the reference log-probabilities.

    Raises:
        CacheError: another machine computed them in another precision than a validation here would have.
    """
    settings, references = training.settings, training.reference_logps
    if settings.scoring is not None:
        caches.check_precision(references, tasks, resolved(settings.scoring.precision))
    precision, others = (
        resolved(settings.training.precision),
        {caches.cache_precision(references / task) for task in tasks},
    )
    if rank() == 0 and others != {precision}:
        current_step().warn(
            f"{training.name} trains in {precision}, and the reference log-probabilities are in "
            f"{', '.join(sorted(others))}: its first loss is not exactly ln 2; set training.precision and "
            "evaluation.precision to the same value"
        )


def checkpoint_key(training: Training, tables: Mapping[str, pa.Table]) -> str:
    """A name made of everything that determines a training, so that no other training uses its checkpoints."""
    settings = training.settings
    total = hashlib.sha256(settings.model_dump_json().encode())
    for task, table in tables.items():
        total.update(task.encode() + b"\0")
        for batch in table.combine_chunks().to_batches():
            total.update(batch.serialize())
    # The log-probabilities in the tables do not show all of the base model: not its dropout, for one.
    for model in dict.fromkeys((training.base_model, training.start_model)):
        total.update(files.digest(model).encode())
    # What the settings leave to the machine.
    bf16 = uses_bf16(settings.training.precision)
    total.update(f"{device().type} {bf16} {world_size()}".encode())
    return f"{training.name}-{total.hexdigest()[:16]}"


def _check_weights(model: Path, steps: int) -> None:
    """Refuse a model whose weights the last step has ruined: no loss is computed after it.

    Raises:
        TrainingError: a weight is not finite.
    """
    if name := first_nonfinite_weight(model):
        raise TrainingError(
            f"after step {steps} the weight {name} is not finite; lower the learning rate, or set "
            "training.max_grad_norm"
        )


def _save_adapter(
    model: Any,
    start: Path,
    folder: Path,
    state_dict: dict[str, torch.Tensor] | None,
    scratch: Path,
    quantize: Quantization | None,
) -> None:
    """Save an adapter with the address of its base model, or folded into a model without an address.

    A merge has no address. So a generalist that starts from one is saved as a full model. An adapter of a
    quantised base stays one in any case: the folded model would be another than the one that was trained.
    """
    address = read_address(start)
    folded = address is None and quantize is None
    adapter = scratch / "adapter" if folded else folder
    # peft writes the path of the base model, and holds modules as a set. Equal trainings write equal adapters.
    for config in model.peft_config.values():
        config.base_model_name_or_path, config.revision = address or (None, None)
        if isinstance(config.target_modules, set):
            config.target_modules = sorted(config.target_modules)
    # "auto" would ask the hub for the base model's vocabulary.
    model.save_pretrained(adapter, state_dict=state_dict, save_embedding_layers=False)
    (adapter / _MODEL_CARD).unlink(missing_ok=True)
    if folded:
        write_full_model(adapter, start, folder)


def training_arguments(settings: TrainingSettings, steps: int, folder: Path) -> "TrainingArguments":
    """The Trainer's settings of the optimiser and the run."""
    from torch.distributed.fsdp import MixedPrecisionPolicy
    from transformers import TrainingArguments

    spec, world = settings.training, world_size()
    micro_batch = spec.micro_batch_size or max(1, spec.batch_size // world)
    if spec.batch_size % (micro_batch * world):
        raise ConfigError(
            f"training.batch_size: {spec.batch_size} pairs cannot be divided among {world} processes "
            f"of {micro_batch} pairs"
        )
    fsdp_config = {
        "activation_checkpointing": spec.gradient_checkpointing,
        "state_dict_type": "FULL_STATE_DICT",
        "cpu_ram_efficient_loading": True,
    }
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=spec.batch_size // (micro_batch * world),
        learning_rate=settings.budget.learning_rate or spec.learning_rate,
        lr_scheduler_type="constant_with_warmup" if spec.lr_scheduler == "constant" else spec.lr_scheduler,
        warmup_steps=spec.count_warmup(steps),
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        bf16=uses_bf16(spec.precision),
        gradient_checkpointing=spec.gradient_checkpointing and not spec.fsdp,
        fsdp=spec.fsdp,
        fsdp_config=fsdp_config if spec.fsdp else None,
        seed=settings.seed,
        data_seed=settings.seed,
        use_cpu=device().type == "cpu",
        dataloader_pin_memory=False,
        ddp_backend="gloo" if world > 1 and device().type == "cpu" else None,
        save_strategy="no",
        logging_nan_inf_filter=False,  # it waits for the GPU in every micro-batch; `finish_step` refuses them
        logging_steps=max(1, steps // 20),
        disable_tqdm=True,
        report_to="none",
        # Else each process holds whole gradients while it accumulates them.
        accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": spec.fsdp}},
    )
    if spec.fsdp and arguments.bf16:
        # By default the gradients, too, would be added up in bf16.
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        arguments.fsdp_plugin_args["mixed_precision_policy"] = policy
    return arguments
