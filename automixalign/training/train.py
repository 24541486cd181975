"""Train specialists and generalists: the same trainer, one task or all of them."""

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from automixalign.config.methods import GeneralistSettings
from automixalign.config.training import SpecialistSettings, TrainingSettings, specialist_name
from automixalign.data.store import IDS, TRAIN, read_split, tasks_of
from automixalign.method.losses import NLL
from automixalign.method.mixer import Mixer, registered_mixers
from automixalign.models.load import device, load_full_model, load_tokenizer, uses_bf16
from automixalign.models.trainable import freeze, lora_config
from automixalign.models.weights import first_nonfinite_weight
from automixalign.scoring import caches
from automixalign.steps.step import current_step
from automixalign.storage import files
from automixalign.system.errors import CacheError, ConfigError, TrainingError
from automixalign.training import checkpoints
from automixalign.training.job import Training, world_size

BASE = "../reference"
"""How an adapter names the model it belongs to: its neighbour, in a run folder and in a publication."""
_MODEL_CARD = "README.md"
"""peft's form to fill in."""


class SpecialistTraining(Training):
    """DPO on one task alone, or on some of its pairs."""

    settings: SpecialistSettings
    task: str
    pair_ids: frozenset[str] | None = None

    def run(self, scratch: Path) -> dict[str, Any]:
        table = _training_table(self.data, self.reference_logps, self.task)
        if self.pair_ids is not None:
            table = table.filter([pair in self.pair_ids for pair in table.column("pair_id").to_pylist()])
        return _train(self, {self.task: table}, Mixer([len(table)], self.settings.seed), scratch)


class GeneralistTraining(Training):
    """One policy for all tasks, by the method of the settings."""

    settings: GeneralistSettings
    losses: list[Path]

    def run(self, scratch: Path) -> dict[str, Any]:
        method = self.settings.method
        tables = self._tables()
        sizes = [len(table) for table in tables.values()]
        mixer = registered_mixers()[method.method](sizes, self.settings.seed, **method.options)
        facts = _train(self, tables, mixer, scratch)
        weights = dict(zip(tables, mixer.weights().round(4).tolist(), strict=True))
        return {**method.model_dump(exclude_none=True), **facts, "weights": weights}

    def _tables(self) -> dict[str, pa.Table]:
        """Each task's training pairs with the reference's log-probabilities and the specialist's losses."""
        folders = {caches.cache_task(folder): folder for folder in self.losses}
        tables = {}
        for task in tasks_of(self.data):
            if task not in folders:
                raise CacheError(f"there are no specialist losses of task {task}")
            caches.check_cache(folders[task], self.data, task)
            table = _training_table(self.data, self.reference_logps, task)
            cache = caches.read_cache(folders[task], TRAIN, caches.LOSS)
            joined = caches.join(cache, table.column("pair_id").to_pylist(), f"specialist losses of {task}")
            tables[task] = table.append_column("specialist_loss", joined.column(caches.LOSS))
        return tables


TRAININGS: dict[str, type[Training]] = {
    kind.__name__: kind for kind in (SpecialistTraining, GeneralistTraining)
}
"""What a job can hold, by the name of its class."""


def recorded(facts: Mapping[str, Any], trajectory: Path) -> dict[str, Any]:
    """A training's metadata with its tokens counted; MLflow is told, too."""
    rows = files.read_jsonl(trajectory)
    tokens = sum(row["pairs"][task] * (mean or 0) for row in rows for task, mean in row["tokens"].items())
    facts = {**facts, "tokens": round(tokens), "tokens_per_second": round(tokens / max(facts["seconds"], 0.1))}
    record = current_step().record
    record.add_metrics({key: value for key, value in facts.items() if key != "weights"})  # their curve has them
    record.add_params({key: value for key, value in facts.items() if isinstance(value, str)})
    record.add_curves(trajectory)
    record.add_artifact(trajectory, "trajectory.jsonl")
    return facts


def _training_table(data: Path, reference_logps: Path, task: str) -> pa.Table:
    """The training pairs of a task with their reference log-probabilities."""
    caches.check_cache(reference_logps / task, data, task)
    table = read_split(data, task, TRAIN, IDS)
    cache = caches.read_cache(reference_logps / task, TRAIN, caches.CHOSEN, caches.REJECTED)
    known = caches.join(cache, table.column("pair_id").to_pylist(), f"reference_logps of {task}")
    table = table.append_column("ref_chosen_logps", known.column(caches.CHOSEN))
    return table.append_column("ref_rejected_logps", known.column(caches.REJECTED))


def _train(training: Training, tables: Mapping[str, pa.Table], mixer: Mixer, scratch: Path) -> dict[str, Any]:
    from datasets import Dataset

    from automixalign.training.trainer import MixingTrainer

    started, settings = time.monotonic(), training.settings
    method = settings.method if isinstance(settings, GeneralistSettings) else None
    steps = _steps(settings, sum(len(table) for table in tables.values()))
    place = checkpoints.place(settings.training.checkpoint_every)
    with checkpoints.of_training(place, _key(training, tables) if place else "training", scratch) as kept:
        tokenizer = load_tokenizer(training.base_model)
        model = load_full_model(training.base_model)
        freeze(model, settings.training.trainable)
        log = kept.folder / checkpoints.TRAJECTORY
        trainer = MixingTrainer(
            model,
            _dpo_config(settings, steps, kept, saves=place is not None),
            {task: Dataset(table.drop_columns("pair_id")) for task, table in tables.items()},
            mixer,
            log,
            average_iterates=method.average_iterates if method else None,
            kept=kept,
            processing_class=tokenizer,
            peft_config=lora_config(model, settings.training.lora),
        )
        trainer.train(resume_from_checkpoint=True)
        # The first process removes the checkpoints' folder, which the others read at the end of theirs.
        trainer.accelerator.wait_for_everyone()
        weights = trainer.whole_weights()
        if trainer.accelerator.is_main_process:
            _name_no_place(trainer.model)
            with files.replacing(training.output) as new:
                trainer.model.save_pretrained(new, state_dict=weights)
                (new / _MODEL_CARD).unlink(missing_ok=True)
                _check_weights(new, steps)
                tokenizer.save_pretrained(new)
            files.link(log, training.trajectory)
    return {
        "steps": steps,
        "pairs": steps * settings.training.batch_size,
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "seconds": round(time.monotonic() - started, 1),
    }


def _check_weights(model: Path, steps: int) -> None:
    """Refuse a model that the last step has spoilt: no loss was computed after it.

    Raises:
        TrainingError: a weight is not finite.
    """
    if name := first_nonfinite_weight(model):
        raise TrainingError(
            f"after step {steps} the weight {name} is not finite; lower the learning rate, or set "
            "training.max_grad_norm"
        )


def _key(training: Training, tables: Mapping[str, pa.Table]) -> str:
    """Names everything that determines a training, so that its checkpoints serve no other one."""
    settings = training.settings
    total = hashlib.sha256(settings.model_dump_json().encode())
    for task, table in tables.items():
        total.update(task.encode() + b"\0")
        for batch in table.combine_chunks().to_batches():
            total.update(batch.serialize())
    # The reference's log-probabilities, in the tables, do not show all of the base model: its dropout, for one.
    total.update(files.digest(training.base_model).encode())
    # What the settings leave to the machine.
    bf16 = uses_bf16(settings.training.precision)
    total.update(f"{device().type} {bf16} {world_size()}".encode())
    name = settings.name if isinstance(settings, GeneralistSettings) else specialist_name(*tables)
    return f"{name}-{total.hexdigest()[:16]}"


def _steps(settings: TrainingSettings, pairs: int) -> int:
    return settings.budget.count_steps(pairs, settings.training.batch_size)


def _name_no_place(model: Any) -> None:
    """Equal trainings write equal adapters: peft would say where the base lay, and holds modules as a set."""
    for adapter in getattr(model, "peft_config", {}).values():
        adapter.base_model_name_or_path = BASE
        if isinstance(adapter.target_modules, set):
            adapter.target_modules = sorted(adapter.target_modules)


def _dpo_config(settings: TrainingSettings, steps: int, kept: checkpoints.Checkpoints, saves: bool) -> Any:
    """TRL's configuration; everything TRL presets and this project means otherwise is set here."""
    from trl import DPOConfig

    training = settings.training
    world = world_size()
    micro = training.micro_batch_size or max(1, training.batch_size // world)
    if training.batch_size % (micro * world):
        raise ConfigError(
            f"training.batch_size: {training.batch_size} pairs cannot be divided among {world} processes "
            f"of {micro} pairs"
        )
    scheduler = training.lr_scheduler
    return DPOConfig(
        output_dir=str(kept.folder),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=training.batch_size // (micro * world),
        learning_rate=settings.budget.learning_rate or training.learning_rate,
        lr_scheduler_type="constant_with_warmup" if scheduler == "constant" else scheduler,
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        beta=training.beta,
        loss_type=[training.loss_type, NLL] if training.nll_weight else [training.loss_type],
        loss_weights=[1.0, training.nll_weight] if training.nll_weight else [1.0],
        label_smoothing=training.label_smoothing,
        bf16=uses_bf16(training.precision),
        gradient_checkpointing=training.gradient_checkpointing and not training.fsdp,
        fsdp=training.fsdp,
        fsdp_config={
            "activation_checkpointing": training.gradient_checkpointing,
            "state_dict_type": "FULL_STATE_DICT",
        }
        if training.fsdp
        else None,
        max_length=None,
        seed=settings.seed,
        data_seed=settings.seed,
        use_cpu=device().type == "cpu",
        dataloader_pin_memory=False,
        ddp_backend="gloo" if world > 1 and device().type == "cpu" else None,
        save_strategy="steps" if saves else "no",
        save_steps=training.checkpoint_every or 1,
        save_total_limit=kept.kept_here,
        logging_steps=max(1, steps // 20),
        disable_tqdm=True,
        report_to="none",
    )
