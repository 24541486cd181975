"""Train specialists and generalists: the same trainer, one task or all of them."""

import math
import os
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from automixalign import files, models, scoring
from automixalign.data.split import TRAIN
from automixalign.data.store import read_split, tasks_of
from automixalign.errors import CacheError, ConfigError
from automixalign.mixers import MIXERS, Mixer, Standard
from automixalign.settings import TrainingSettings


def train_specialist(
    settings: TrainingSettings,
    task: str,
    data: Path,
    reference: Path,
    base_model: Path,
    output: Path,
    trajectory: Path,
) -> dict[str, Any]:
    """Train the specialist theta_i by DPO on one task alone; write the model and a per-step log.

    Returns:
        Metadata: steps, pairs, seconds.

    Raises:
        CacheError: the reference log-probabilities are not those of this data.
        TrainingError: the loss became not finite.
    """
    tables = {task: _training_table(data, reference, task)}
    mixer = Standard([len(tables[task])], settings.seed)
    return _train(settings, tables, mixer, base_model, output, trajectory)


def train_generalist(
    settings: TrainingSettings,
    data: Path,
    reference: Path,
    losses: list[Path],
    base_model: Path,
    output: Path,
    trajectory: Path,
) -> dict[str, Any]:
    """Train one generalist on all tasks with the method of the settings; write the model and a per-step log.

    Args:
        losses: the specialists' caches, one a task, in any order.

    Returns:
        Metadata: method, steps, pairs, seconds, the last task weights.

    Raises:
        CacheError: a cache is missing, incomplete or belongs to other data.
        TrainingError: the loss became not finite.
    """
    method = settings.method
    assert method is not None  # noqa: S101  the plan gives every generalist one
    caches = {scoring.cache_task(folder): folder for folder in losses}
    tables = {}
    for task in tasks_of(data):
        if task not in caches:
            raise CacheError(f"there are no specialist losses of task {task}")
        scoring.check_cache(caches[task], data, task)
        table = _training_table(data, reference, task)
        cache = scoring.read_cache(caches[task], TRAIN)
        joined = scoring.join(cache, table.column("pair_id").to_pylist(), f"specialist losses of {task}")
        tables[task] = table.append_column("specialist_loss", joined.column(scoring.LOSS))
    sizes = [len(table) for table in tables.values()]
    mixer = MIXERS[method.method](sizes, settings.seed, **method.options)
    facts = _train(settings, tables, mixer, base_model, output, trajectory)
    weights = dict(zip(tables, mixer.weights().round(4).tolist(), strict=True))
    return {"method": method.method, **method.options, **facts, "weights": weights}


def _training_table(data: Path, reference: Path, task: str) -> pa.Table:
    """The training pairs of a task with their reference log-probabilities."""
    scoring.check_cache(reference / task, data, task)
    table = read_split(data, task, TRAIN).select(["pair_id", "prompt_ids", "chosen_ids", "rejected_ids"])
    cache = scoring.read_cache(reference / task, TRAIN)
    known = scoring.join(cache, table.column("pair_id").to_pylist(), f"reference log-probs of {task}")
    table = table.append_column("ref_chosen_logps", known.column(scoring.CHOSEN))
    return table.append_column("ref_rejected_logps", known.column(scoring.REJECTED))


def _train(
    settings: TrainingSettings,
    tables: Mapping[str, pa.Table],
    mixer: Mixer,
    base_model: Path,
    output: Path,
    trajectory: Path,
) -> dict[str, Any]:
    from datasets import Dataset

    from automixalign.trainer import MixingTrainer

    started = time.monotonic()
    steps = _steps(settings, sum(len(table) for table in tables.values()))
    tokenizer = models.load_tokenizer(base_model)
    model = models.load_full_model(base_model)
    _freeze(model, settings.training.trainable)
    with files.replacing(trajectory) as log, tempfile.TemporaryDirectory() as scratch:
        log.touch()
        trainer = MixingTrainer(
            model,
            _dpo_config(settings, steps, scratch),
            {task: Dataset(table.drop_columns("pair_id")) for task, table in tables.items()},
            mixer,
            log,
            processing_class=tokenizer,
            peft_config=_lora(settings),
        )
        trainer.train()
        with files.replacing(output) as folder:
            trainer.model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    return {
        "steps": steps,
        "pairs": steps * settings.training.batch_size,
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "seconds": round(time.monotonic() - started, 1),
    }


def _steps(settings: TrainingSettings, pairs: int) -> int:
    budget = settings.budget
    if budget.steps is not None:
        return budget.steps
    assert budget.epochs is not None  # noqa: S101  the schema requires one of them
    return math.ceil(budget.epochs * pairs / settings.training.batch_size)


def _freeze(model: Any, trainable: list[str] | None) -> None:
    """Train only the parameters whose name one of the patterns finds.

    Raises:
        ConfigError: a pattern finds none.
    """
    if trainable is None:
        return
    names = [name for name, _ in model.named_parameters()]
    for pattern in trainable:
        if not any(re.search(pattern, name) for name in names):
            raise ConfigError(
                f"training.trainable: {pattern!r} finds no parameter; there are: {', '.join(names)}"
            )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(re.search(pattern, name) for pattern in trainable))


def _lora(settings: TrainingSettings) -> Any:
    if settings.training.lora is None:
        return None
    from peft import LoraConfig

    lora = settings.training.lora
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=lora.target_modules,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )


def _dpo_config(settings: TrainingSettings, steps: int, scratch: str) -> Any:
    """TRL's configuration; everything TRL presets and this project means otherwise is set here."""
    from trl import DPOConfig

    training = settings.training
    world = _world_size()
    micro = training.micro_batch_size or max(1, training.batch_size // world)
    if training.batch_size % (micro * world):
        raise ConfigError(
            f"training.batch_size: {training.batch_size} pairs cannot be divided among {world} processes "
            f"of {micro} pairs"
        )
    scheduler = training.lr_scheduler
    return DPOConfig(
        output_dir=scratch,
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=training.batch_size // (micro * world),
        learning_rate=settings.budget.learning_rate or training.learning_rate,
        lr_scheduler_type="constant_with_warmup" if scheduler == "constant" else scheduler,
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        beta=training.beta,
        # The preference loss is the mixer's; of TRL's list, only the NLL term is taken as it is.
        loss_type=["sft"] if training.nll_weight else ["sigmoid"],
        loss_weights=[training.nll_weight or 1.0],
        bf16=models.uses_bf16(training.precision),
        gradient_checkpointing=training.gradient_checkpointing,
        max_length=None,
        seed=settings.seed,
        data_seed=settings.seed,
        use_cpu=models.device().type == "cpu",
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_steps=max(1, steps // 20),
        disable_tqdm=True,
        report_to="none",
    )


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
