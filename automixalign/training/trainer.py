"""transformers' Trainer with a mixer that draws the batches and weighs the preference loss.

- The pairs arrive tokenised, with their log-probabilities under the reference model, which is never loaded.
- Scoring and training share the layout of pairs, the attention and the head of a forward pass
  (`scoring/logps`).
- The pairs of a step are drawn when the step begins, with the task weights of that moment. A sampler would draw
  them several steps ahead.
- The loss of a step is `mean_z w_z e(z)` (`method/mixers.py`), plus `nll_weight` times the negative
  log-likelihood of the chosen answers: a mean over the tokens of the whole step, however many forward passes it
  has.
- The policy is scored on validation pairs, if the training has a validation (`validation.py`).
- A checkpoint holds the trained weights and the optimiser's state, of which each process writes what it holds,
  the mixer, the position of the draws, the average of the iterates, and the best policy. From a GPU they are
  only copied, and written while the training goes on.
"""

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import unwrap_peft_model

from automixalign.config.settings import PLAIN, Loading
from automixalign.method.losses import Loss
from automixalign.method.mixer import Draws, Floats, Ints, Mixer
from automixalign.models.divided import replace_meta
from automixalign.scoring.logps.batch import PairIds, on_device
from automixalign.scoring.logps.forward import prepare_head, side_logps
from automixalign.scoring.logps.layout import Layout, attending
from automixalign.steps.step import current_step
from automixalign.storage import files
from automixalign.system import heap
from automixalign.system.errors import TrainingError
from automixalign.system.messages import logger
from automixalign.training import averaging
from automixalign.training.averaging import IterateAverage
from automixalign.training.checkpoints.folder import STATE, TRAJECTORY, CheckpointStore, saving
from automixalign.training.checkpoints.schedule import Schedule
from automixalign.training.gradients import gradient_moments
from automixalign.training.parameters import Tensors, load_trained_state, save, trained_state
from automixalign.training.validation import Validation, Validator

_REFERENCE_LOGPS = ("ref_chosen_logps", "ref_rejected_logps")
_SPECIALIST_LOSS = "specialist_loss"
_MEASUREMENT = 1
"""Sets the random numbers of a measurement of gradients apart from those of the draws."""


class _PairLosses(NamedTuple):
    logps: torch.Tensor
    """Of chosen and rejected answers, in nats, shape (n, 2)."""
    margin: torch.Tensor
    """Reward of the chosen answer minus that of the rejected one, shape (n,)."""
    loss: torch.Tensor
    """L of each pair, shape (n,)."""


class MixingTrainer(Trainer):  # type: ignore[misc]
    """Train a policy on the pairs of several tasks, mixed by a `Mixer`.

    Args:
        model: the policy: a full model, or a peft model. Its dropout is set to 0.
        args: of the optimiser and the run. Batch size, accumulation and number of processes give the pairs of
            a step.
        datasets: task -> its pairs, in the mixer's order, with the columns `prompt_ids`, `chosen_ids`,
            `rejected_ids`, `ref_chosen_logps`, `ref_rejected_logps` and, for generalists, `specialist_loss`.
        mixer: draws the tasks, weighs the pairs, and learns from each step.
        loss: the loss of a pair.
        nll_weight: weight of the negative log-likelihood of the chosen answers (TRL's `sft` term).
        trajectory: JSONL file, which gets a line for each optimiser step.
        average_iterates: share of the training, from its end, over whose steps the policy is averaged.
        checkpoints: the store of the checkpoints; by default the folder `args.output_dir`.
        schedule: when to save one; by default never. The settings of `args` for saving are not used.
        validation: what to validate the policy on, if anything.
        loading: how the policy was loaded; it names the attention.
        kwargs: passed to transformers' Trainer: `processing_class`, `callbacks`.

    Raises:
        TrainingError: the loss of a step is not finite, or the mixer needs a column that the data lacks.
    """

    loss_is_scaled_for_ga = False
    """`compute_loss` returns the mean of a micro-batch; the Trainer divides it by their number."""

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        *,
        datasets: dict[str, Dataset],
        mixer: Mixer,
        loss: Loss,
        nll_weight: float = 0.0,
        trajectory: Path,
        average_iterates: float | None = None,
        checkpoints: CheckpointStore | None = None,
        schedule: Schedule | None = None,
        validation: Validation | None = None,
        loading: Loading = PLAIN,
        **kwargs: Any,
    ) -> None:
        self.policy = unwrap_peft_model(model)
        self.loading = loading
        self.layout = Layout(masked=True)
        self.tasks = list(datasets)
        self.by_task = list(datasets.values())
        self.mixer = mixer
        self.pair_loss, self.nll_weight = loss, nll_weight
        self.draws = Draws([len(data) for data in self.by_task], args.seed)
        self.trajectory = trajectory
        self.checkpoints = checkpoints or CheckpointStore(Path(args.output_dir))
        self.schedule = schedule or Schedule()
        args.save_strategy = "no"
        self.totals: dict[str, torch.Tensor] = {}
        self.has_specialists = all(_SPECIALIST_LOSS in data.column_names for data in self.by_task)
        if not self.has_specialists and {mixer.trains_on, mixer.learns_from} != {"loss"}:
            raise TrainingError(
                f"the data has no column {_SPECIALIST_LOSS}, from which this mixer computes the excess"
            )
        if args.fsdp:
            replace_meta(self.policy)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if args.n_gpu > 1:  # a process has one GPU; the Trainer would divide its batches among all that it sees
            args._n_gpu = 1
        super().__init__(model=model, args=args, **kwargs)
        prepare_head(self.policy)
        if self.accelerator.ddp_handler is not None:  # the processes exchange gradients without a copy of them
            self.accelerator.ddp_handler.gradient_as_bucket_view = True
        self.pairs_per_step = (
            args.per_device_train_batch_size * args.gradient_accumulation_steps * self.accelerator.num_processes
        )
        share = average_iterates or 0.0
        self.first_averaged = args.max_steps - math.ceil(share * args.max_steps) + 1
        self.average = IterateAverage(self.trained) if share else None
        self.validator: Validator | None = None
        if validation is not None:
            self.validator = Validator(
                validation,
                self.policy,
                parameters=self.trained,
                average=self.average,
                accelerator=self.accelerator,
                micro_batch=args.per_device_train_batch_size,
                folder=Path(args.output_dir),
            )
        self.add_callback(_AfterStep(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train to the end.

        Args:
            resume_from_checkpoint: the folder of a checkpoint; or True for the last complete one of the store,
                or the start if it has none. A resumed training has the result of one without a break.
            kwargs: passed to transformers' Trainer.
        """
        heap.keep_freed_memory()
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self._last_checkpoint()
        checkpoint = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        if checkpoint is not None:
            self._restore(checkpoint)
        elif self.accelerator.is_main_process:
            files.write_text(self.trajectory, "")
        self.schedule.restart()
        with _naming(checkpoint), attending(self.policy, self.loading) as self.layout:
            result = super().train(resume_from_checkpoint=str(checkpoint) if checkpoint else None, **kwargs)
        self.checkpoints.wait()
        self.layout = Layout(masked=True)
        if self.validator is not None and self.validator.best:
            self.validator.install_best()
        elif self.average is not None:
            self.average.install()
        return result

    @property
    def trained(self) -> list[torch.nn.Parameter]:
        """The trained parameters. Nobody may hold those that FSDP will replace when it divides the model."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @property
    def kept_step(self) -> int:
        """The step whose policy `train` has left in the model."""
        best = self.validator.best if self.validator is not None else {}
        return int(best.get("step", self.state.global_step))

    @property
    def saves_in_background(self) -> bool:
        """Whether a thread writes checkpoints from a copy. On a CPU, the copy would double the memory."""
        return bool(self.args.device.type != "cpu")

    def whole_state_dict(self) -> dict[str, torch.Tensor] | None:
        """The policy's weights if FSDP has divided them, on the first process; every process must call this.

        None if the policy itself holds them.
        """
        if not self.is_fsdp_enabled:
            return None
        state_dict: dict[str, torch.Tensor] = self.accelerator.get_state_dict(self.model)
        return state_dict

    def _last_checkpoint(self) -> str:
        """The folder of the last complete checkpoint, which the first process fetches for all; "" if none."""
        folder = [str(self.checkpoints.last_complete() or "") if self.accelerator.is_main_process else ""]
        return str(broadcast_object_list(folder)[0])

    def _restore(self, checkpoint: Path) -> None:
        """Load a checkpoint, without the weights and the optimiser's state."""
        state = files.read_json(checkpoint / STATE)
        self.mixer.load(state["mixer"])
        self.draws.drawn = state["drawn"]
        if self.average is not None:
            self.average.load(checkpoint, state["averaged"])
        if self.validator is not None:
            self.validator.load(checkpoint, state["best"])
        if self.accelerator.is_main_process:
            logger.info("resumes after step %s, from %s", state["step"], checkpoint)
            with files.replacing(self.trajectory) as new:
                shutil.copyfile(checkpoint / TRAJECTORY, new)

    def _load_from_checkpoint(self, *_: Any) -> None:
        """Do nothing: `_load_optimizer_and_scheduler` also loads the weights."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state = files.read_json(Path(checkpoint) / STATE)
        shard = self.accelerator.process_index if self.is_fsdp_enabled else 0
        load_trained_state(self.optimizer, Path(checkpoint) / _shard_file(shard), state["param_groups"])
        self.lr_scheduler.load_state_dict(state["lr_scheduler"])

    def is_checkpoint_due(self) -> bool:
        """Whether to save a checkpoint now; with a limit in time, the first process decides.

        The last step has none: the model is written then.
        """
        due = self.schedule.is_due(self.state.global_step)
        if self.schedule.minutes:
            due = bool(broadcast_object_list([due])[0])
        return due and self.state.global_step < self.args.max_steps

    def _save_checkpoint(self, *_: Any) -> None:
        """Write what this process holds. On a GPU, only copy it; a thread then writes the copy."""
        self.checkpoints.wait()
        self.schedule.restart()
        checkpoint = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        rank, is_first = self.accelerator.process_index, self.accelerator.is_main_process
        with saving(checkpoint):
            self._save_rng_state(str(checkpoint))
            if is_first:
                self._save_state(checkpoint)
            self.accelerator.wait_for_everyone()
        tensors: dict[str, Tensors] = {}
        if is_first or self.is_fsdp_enabled:
            tensors[_shard_file(rank)] = trained_state(self.optimizer)
        if is_first and self.average is not None:
            tensors[averaging.FILE] = self.average.tensors()
        if self.saves_in_background:
            tensors = {name: _copied(each) for name, each in tensors.items()}

        def write() -> None:
            for name, each in tensors.items():
                save(each, checkpoint / name)

        shards = self.accelerator.num_processes if self.is_fsdp_enabled else 1
        parts = [_shard_file(number) for number in range(shards)]
        self.checkpoints.add(checkpoint, write, parts, self.saves_in_background)

    def _save_state(self, checkpoint: Path) -> None:
        """Write what the first process writes at once."""
        if self.validator is not None:
            self.validator.save(checkpoint)
        self.state.save_to_json(str(checkpoint / TRAINER_STATE_NAME))
        state = {
            "step": self.state.global_step,
            "mixer": self.mixer.state(),
            "drawn": self.draws.drawn,
            "averaged": self.average.count if self.average is not None else 0,
            "best": self.validator.best if self.validator is not None else {},
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "param_groups": self.optimizer.state_dict()["param_groups"],
        }
        files.write_json(checkpoint / STATE, state)
        shutil.copyfile(self.trajectory, checkpoint / TRAJECTORY)

    def get_train_dataloader(self) -> DataLoader[int]:
        """An index for each micro-step; `get_batch_samples` draws the pairs."""
        micro_steps = range(self.args.max_steps * self.args.gradient_accumulation_steps)
        return DataLoader(micro_steps)  # type: ignore[arg-type]

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], None]:
        """Draw the step's pairs with the current task weights; return this process's micro-batches."""
        self._measure_gradients()
        if not np.isfinite(self.mixer.weights()).all():
            raise TrainingError(
                f"step {self.state.global_step + 1}: the task weights of the method are not finite; lower the "
                "learning rate, or the step size of the weights among the method's options"
            )
        tasks = self.mixer.draw(self.state.global_step, self.pairs_per_step)
        weights = self.mixer.example_weights(tasks)
        rows = [
            {**self.by_task[task][self.draws.next(task)], "task": task, "weight": weight}
            for task, weight in zip(tasks.tolist(), weights.tolist(), strict=True)
        ]
        # Pairs of similar length share a micro-batch: less padding, and processes that take equally long.
        rows.sort(key=lambda row: _ids(row).size)
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        size = self.args.per_device_train_batch_size * world
        own = [_share_of(rows[start : start + size], world, rank) for start in range(0, len(rows), size)]
        batches = [self._collate(part) for part in own]
        for batch in batches:
            batch["chosen_tokens"] = sum(len(row["chosen_ids"]) for row in rows) / (num_batches * world)
        return batches, None

    def _measure_gradients(self) -> None:
        """Show the mixer the gradients of the tasks' losses, if it is due; no draw of a step changes."""
        step, sample = self.state.global_step, self.mixer.gradients
        if sample is None or step % sample.every:
            return
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        moments = []
        self.model.eval()
        for task, data in enumerate(self.by_task):
            random = np.random.default_rng([self.args.seed, step, task, _MEASUREMENT])
            own = random.integers(len(data), size=sample.pairs)[rank::world]
            losses = (self._loss_of({**data[int(index)], "task": task, "weight": 1.0}) for index in own)
            moments.append(gradient_moments(losses, self.trained, sample.pairs, self.accelerator))
        self.model.train()
        squared_norms, variances = np.array(moments).T
        self.mixer.learn_gradients(squared_norms, variances, self.pairs_per_step)

    def _loss_of(self, row: dict[str, Any]) -> torch.Tensor:
        """The preference loss of one pair, a scalar, outside of any step."""
        with self.compute_loss_context_manager():
            return self._pair_losses(self.model, self._collate([row])).loss.sum()

    def _collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """A micro-batch of n pairs, on the device.

        Returns:
            `batch`: the token ids of both sides; `reference_logps` and `lengths`: shape (n, 2);
            `chosen_tokens`: their number; the others: shape (n,).
        """
        batch = self.layout.batch([_ids(row) for row in rows]).to(self.args.device)
        columns = {
            "reference_logps": [[row[key] for key in _REFERENCE_LOGPS] for row in rows],
            "lengths": [[len(row["chosen_ids"]), len(row["rejected_ids"])] for row in rows],
            "tokens": [_ids(row).size for row in rows],
            "task": [row["task"] for row in rows],
            _SPECIALIST_LOSS: [row.get(_SPECIALIST_LOSS, 0.0) for row in rows],
            "weight": [row["weight"] for row in rows],
        }
        return {
            "batch": batch,
            "input_ids": batch.inputs["input_ids"],  # the Trainer counts tokens by them
            "chosen_tokens": sum(len(row["chosen_ids"]) for row in rows),
            **{key: on_device(torch.tensor(values), self.args.device) for key, values in columns.items()},
        }

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The micro-batch's part of the step's loss, a scalar, from one forward pass.

        Args:
            model: the policy, perhaps wrapped by accelerate.
            inputs: what `_collate` returned, on the device.
            return_outputs: not used.
            num_items_in_batch: not used.
        """
        task = inputs["task"]
        logps, margin, loss = self._pair_losses(model, inputs)
        values = {"loss": loss}
        if self.has_specialists:
            difference = loss - inputs[_SPECIALIST_LOSS]
            excess = difference.clamp(min=0)
            values |= {"difference": difference, "excess": excess, "clipped": (difference <= 0).float()}
        objective: torch.Tensor = (inputs["weight"] * values[self.mixer.trains_on]).mean()
        self._add_to_totals(
            task, **values, margin=margin, accuracy=(margin > 0).float(), tokens=inputs["tokens"]
        )
        if self.nll_weight:
            objective = objective - self.nll_weight * logps[:, 0].sum() / inputs["chosen_tokens"]
        return objective

    def _pair_losses(self, model: Any, inputs: dict[str, Any]) -> "_PairLosses":
        logps = side_logps(model, inputs["batch"])
        chosen, rejected = (logps - inputs["reference_logps"]).T
        loss = self.pair_loss.per_pair(chosen, rejected, *inputs["lengths"].T)
        return _PairLosses(logps, self.pair_loss.beta * (chosen - rejected), loss)

    def _add_to_totals(self, task: torch.Tensor, **values: torch.Tensor) -> None:
        """Add the pairs' values to the sums of their tasks over the micro-steps of a step.

        Args:
            task: the task of each pair, shape (n,).
            values: quantities of each pair, shape (n,) each.
        """
        values["pairs"] = torch.ones_like(task)
        for name, value in values.items():
            sums = torch.zeros(len(self.tasks), dtype=torch.float64, device=task.device)
            sums.index_add_(0, task, value.detach().double())
            self.totals[name] = self.totals[name] + sums if name in self.totals else sums

    def finish_step(self) -> None:
        """Update the mixer with the totals of all processes, and append the step to the trajectory.

        Raises:
            TrainingError: a loss is not finite. It is seen here, because a GPU would have to end its work for
                a look at each micro-batch.
        """
        # One exchange a step: a row for each quantity, a column for each task.
        summed = self.accelerator.reduce(torch.stack(list(self.totals.values())), "sum").cpu().numpy()
        totals = dict(zip(self.totals, summed, strict=True))
        self.totals = {}
        if bad := sorted({self.tasks[i] for i in np.flatnonzero(~np.isfinite(totals[self.mixer.trains_on]))}):
            raise TrainingError(
                f"step {self.state.global_step}: the loss is not finite (tasks {bad}); lower the learning "
                "rate, or check the data"
            )
        alpha = self.mixer.weights()
        pairs = totals.pop("pairs").astype(np.int64)
        self.mixer.update(totals[self.mixer.learns_from], pairs)
        if self.average is not None and self.state.global_step >= self.first_averaged:
            self.average.add()
        step, last = self.state.global_step, self.args.max_steps
        validated = self.validator.validate(step, last) if self.validator is not None else {}
        if self.accelerator.is_main_process:
            loss = float(totals["loss"].sum() / pairs.sum())
            current_step().report(step, last, loss=loss)
            row = {
                "step": step,
                "weights": dict(zip(self.tasks, alpha.tolist(), strict=True)),
                "pairs": dict(zip(self.tasks, pairs.tolist(), strict=True)),
                **{name: self._means(total, pairs) for name, total in totals.items()},
                **({"validation": validated} if validated else {}),
            }
            with self.trajectory.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")

    def _means(self, totals: Floats, pairs: Ints) -> dict[str, float | None]:
        """Task -> mean over its pairs in the step, None without a pair; both arguments have shape (k,)."""
        means = totals / np.maximum(pairs, 1)
        return {
            task: float(mean) if count else None
            for task, mean, count in zip(self.tasks, means, pairs, strict=True)
        }


def _shard_file(process: int) -> str:
    return f"state-{process}.safetensors"


def _copied(tensors: Tensors) -> Tensors:
    return {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}


def _share_of(rows: list[dict[str, Any]], world: int, rank: int) -> list[dict[str, Any]]:
    """One process's share of sorted pairs: dealt back and forth, so that all get about as many tokens."""
    turns = range(len(rows) // world)
    return [rows[turn * world + (world - 1 - rank if turn % 2 else rank)] for turn in turns]


def _ids(row: dict[str, Any]) -> PairIds:
    return PairIds(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"])


@contextmanager
def _naming(checkpoint: Path | None) -> Iterator[None]:
    """Name the checkpoint in the error if it cannot be read: torch unpickles tensors and numbers only.

    Raises:
        TrainingError: a file of it is damaged, or a pickle of something else.
    """
    try:
        yield
    except (UnpicklingError, SafetensorError) as error:
        # torch's own message advises to load such a pickle nevertheless.
        is_pickle = isinstance(error, UnpicklingError)
        reason = "a file of it is a pickle that could run code" if is_pickle else str(error)
        raise TrainingError(f"{checkpoint} cannot be read: {reason}; remove it, and start again") from error


class _AfterStep(TrainerCallback):  # type: ignore[misc]
    """Finishes a step before its checkpoint is written, so that the checkpoint holds the updated mixer."""

    def __init__(self, trainer: MixingTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:
        self.trainer.finish_step()
        self.trainer.checkpoints.check()
        control.should_save = self.trainer.is_checkpoint_due()
