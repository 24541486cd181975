"""TRL's DPOTrainer with the batch and the objective in the hands of a mixer.

What differs from `trl.DPOTrainer`, and nothing else does:

- pairs come tokenised and with their reference log-probabilities, so nothing is prepared or precomputed again;
- a forward pass holds them packed, each prompt once and no padding, where the architecture allows (`logps/`);
- the pairs of a step are drawn when the step begins, with the task weights of that moment. A sampler would have
  been asked for them several steps ahead;
- the loss of a step is `mean_z w_z e(z)` (see `mixers.py`), plus TRL's `sft` term where the loss list asks for
  it: a mean over the chosen tokens of the whole step, however it is cut into forward passes;
- a checkpoint also holds the mixer, the position of the draws and the average of the iterates.
"""

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer

from automixalign.method.losses import from_trl
from automixalign.method.mixer import Draws, Mixer
from automixalign.scoring.logps.batch import PairIds
from automixalign.scoring.logps.forward import batch_of, packing, side_logps
from automixalign.steps.step import current_step
from automixalign.storage import files
from automixalign.system import heap
from automixalign.system.errors import TrainingError
from automixalign.system.messages import logger
from automixalign.training import checkpoints
from automixalign.training.averaging import IterateAverage
from automixalign.training.checkpoints import Checkpoints

_REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")
_SPECIALIST = "specialist_loss"


class MixingTrainer(DPOTrainer):  # type: ignore[misc]  # trl ships no types
    """Train a policy by DPO on several tasks, mixed by a `Mixer`.

    Args:
        model: the policy (full, or with a `peft_config` in `kwargs`).
        args: TRL's configuration. Batch size, accumulation and world size give the pairs of a step; `loss_type`
            is one of `losses.Loss`, and may be followed by `sft`, weighted by `loss_weights`.
        datasets: per task, in the mixer's order, a data set with the columns `prompt_ids`, `chosen_ids`,
            `rejected_ids`, `ref_chosen_logps`, `ref_rejected_logps` and, for generalists, `specialist_loss`.
        mixer: draws the tasks, weighs the pairs and learns from what it is shown of them.
        trajectory: JSONL file that gets a line an optimiser step.
        average_iterates: share of the training, counted from its end, over whose steps the policy is averaged.
        kept: the checkpoints, where other than `args.output_dir` simply has them.

    Raises:
        ConfigError: `args` asks for what has no per-pair loss here.
        TrainingError: the loss of a step is not finite; or what a mixer needs of the data is not there.
    """

    def __init__(
        self,
        model: Any,
        args: DPOConfig,
        datasets: dict[str, Dataset],
        mixer: Mixer,
        trajectory: Path,
        average_iterates: float | None = None,
        kept: Checkpoints | None = None,
        **kwargs: Any,
    ) -> None:
        self.pair_loss, self.nll_weight = from_trl(args, kwargs.get("eval_dataset"))
        self.policy = model
        self.packed = False
        self.tasks = list(datasets)
        self.by_task = list(datasets.values())
        self.mixer = mixer
        self.draws = Draws([len(data) for data in self.by_task], args.seed)
        self.trajectory = trajectory
        self.kept = kept or Checkpoints(Path(args.output_dir))
        self.totals: dict[str, torch.Tensor] = {}
        self.has_specialists = all(_SPECIALIST in data.column_names for data in self.by_task)
        if not self.has_specialists and {mixer.trains_on, mixer.learns_from} != {"loss"}:
            raise TrainingError(
                f"the data has no column {_SPECIALIST}, which this mixer's excess is counted from"
            )
        args.precompute_ref_log_probs = True
        super().__init__(model=model, args=args, train_dataset=self.by_task[0], **kwargs)
        if self.accelerator.ddp_handler is not None:  # gradients then lie where they are exchanged from
            self.accelerator.ddp_handler.gradient_as_bucket_view = True
        self.pairs_per_step = (
            args.per_device_train_batch_size * args.gradient_accumulation_steps * self.accelerator.num_processes
        )
        share = average_iterates or 0.0
        self.first_averaged = args.max_steps - math.ceil(share * args.max_steps) + 1
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.average = IterateAverage(trained) if share else None
        self.add_callback(_AfterStep(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train to the end.

        Args:
            resume_from_checkpoint: a checkpoint folder, or True for the last whole one of `args.output_dir`,
                from the start if there is none. The result is what training without a break would have given.
        """
        heap.keep_freed_memory()
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self._last_checkpoint()
        checkpoint = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        if checkpoint is not None:
            self._restore(checkpoint)
        elif self.accelerator.is_main_process:
            files.write_text(self.trajectory, "")
        with _readable(checkpoint), packing(self.policy) as self.packed:
            result = super().train(resume_from_checkpoint=str(checkpoint) if checkpoint else None, **kwargs)
        self.packed = False
        if self.average is not None:
            self.average.install()
        return result

    def whole_weights(self) -> dict[str, torch.Tensor] | None:
        """The policy's weights where FSDP has divided them, on the first process; every process must ask.

        None where the policy itself holds them.
        """
        if not self.is_fsdp_enabled:
            return None
        weights: dict[str, torch.Tensor] = self.accelerator.get_state_dict(self.model)
        return weights

    def _last_checkpoint(self) -> str:
        """The first process finds, checks and fetches it for all; empty if there is none."""
        found = [str(self.kept.last_whole() or "") if self.accelerator.is_main_process else ""]
        return str(broadcast_object_list(found)[0])

    def _restore(self, checkpoint: Path) -> None:
        """Take up our part of a checkpoint."""
        state = files.read_json(checkpoint / checkpoints.STATE)
        self.mixer.load(state["mixer"])
        self.draws.drawn = state["drawn"]
        if self.average is not None:
            self.average.load(checkpoint, state["averaged"])
        if self.accelerator.is_main_process:
            logger.info("goes on after step %s, from %s", state["step"], checkpoint)
            with files.replacing(self.trajectory) as new:
                shutil.copyfile(checkpoint / checkpoints.TRAJECTORY, new)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save one, and complete it with our part once every process has written its own."""
        checkpoint = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        with checkpoints.saved(checkpoint):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                self._complete(checkpoint)

    def _complete(self, checkpoint: Path) -> None:
        if self.average is not None:
            self.average.save(checkpoint)
        state = {
            "step": self.state.global_step,
            "mixer": self.mixer.state(),
            "drawn": self.draws.drawn,
            "averaged": self.average.count if self.average is not None else 0,
        }
        files.write_json(checkpoint / checkpoints.STATE, state)
        shutil.copyfile(self.trajectory, checkpoint / checkpoints.TRAJECTORY)
        self.kept.add(checkpoint)

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def get_train_dataloader(self) -> DataLoader[int]:
        """Count the micro-steps; what they hold is drawn in `get_batch_samples`."""
        return DataLoader(range(self.args.max_steps * self.args.gradient_accumulation_steps))  # type: ignore[arg-type]

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], None]:
        """Draw the step's pairs with the current task weights; return this rank's micro-batches."""
        tasks = self.mixer.draw(self.state.global_step, self.pairs_per_step)
        weights = self.mixer.example_weights(tasks)
        rows = [
            {**self.by_task[task][self.draws.next(task)], "task": task, "weight": weight}
            for task, weight in zip(tasks.tolist(), weights.tolist(), strict=True)
        ]
        # Alike lengths together: what is drawn stays the same, what is padded shrinks, and processes keep pace.
        rows.sort(key=lambda row: _ids(row).size)
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        size = self.args.per_device_train_batch_size * world
        mine = [_dealt(rows[start : start + size], world, rank) for start in range(0, len(rows), size)]
        batches = [self._collate(part) for part in mine]
        for batch in batches:
            batch["chosen_tokens"] = sum(len(row["chosen_ids"]) for row in rows) / (num_batches * world)
        return batches, None

    def _collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = batch_of([_ids(row) for row in rows], self.packed)
        return {
            "batch": batch,
            "input_ids": batch.inputs["input_ids"],  # by which the Trainer counts
            "reference_logps": torch.tensor([[row[key] for key in _REFERENCE] for row in rows]),
            "tokens": torch.tensor([_ids(row).size for row in rows]),
            "chosen_tokens": sum(len(row["chosen_ids"]) for row in rows),
            "task": torch.tensor([row["task"] for row in rows]),
            _SPECIALIST: torch.tensor([row.get(_SPECIALIST, 0.0) for row in rows]),
            "weight": torch.tensor([row["weight"] for row in rows]),
        }

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """The micro-batch's part of the step's loss, from one forward pass."""
        task, batch = inputs["task"], inputs["batch"].to(self.args.device)
        # On CUDA, TRL's head keeps the logits of a large vocabulary out of memory; on the CPU it is slow.
        logps = side_logps(model, batch, fused=self.args.device.type == "cuda")
        chosen, rejected = (logps - inputs["reference_logps"]).T
        lengths = torch.tensor(batch.sizes, device=task.device).view(-1, 2).T
        loss = self.pair_loss.per_pair(chosen, rejected, *lengths)
        values = {"loss": loss}
        if self.has_specialists:
            difference = loss - inputs[_SPECIALIST]
            excess = difference.clamp(min=0)
            values |= {"difference": difference, "excess": excess, "clipped": (difference <= 0).float()}
        objective: torch.Tensor = (inputs["weight"] * values[self.mixer.trains_on]).mean()
        margin = self.pair_loss.beta * (chosen - rejected)
        self._count(task, **values, margin=margin, accuracy=(margin > 0).float(), tokens=inputs["tokens"])
        if not torch.isfinite(objective):
            raise TrainingError(
                f"step {self.state.global_step + 1}: the loss is not finite (tasks "
                f"{sorted({self.tasks[i] for i in task.tolist()})}); lower the learning rate, or check the data"
            )
        if self.nll_weight:
            objective = objective - self.nll_weight * logps[:, 0].sum() / inputs["chosen_tokens"]
        return objective

    def _count(self, task: torch.Tensor, **values: torch.Tensor) -> None:
        """Add up, per task, over the micro-steps of an optimiser step."""
        values["pairs"] = torch.ones_like(task)
        for name, value in values.items():
            sums = torch.zeros(len(self.tasks), dtype=torch.float64, device=task.device)
            sums.index_add_(0, task, value.detach().double())
            self.totals[name] = self.totals[name] + sums if name in self.totals else sums

    def finish_step(self) -> None:
        """Show the mixer what the step saw, over all ranks, and write it to the trajectory."""
        # One exchange a step: a row a quantity, a column a task.
        summed = self.accelerator.reduce(torch.stack(list(self.totals.values())), "sum").cpu().numpy()
        totals = dict(zip(self.totals, summed, strict=True))
        self.totals = {}
        alpha = self.mixer.weights()
        pairs = totals.pop("pairs").astype(np.int64)
        self.mixer.update(totals[self.mixer.learns_from], pairs)
        if self.average is not None and self.state.global_step >= self.first_averaged:
            self.average.add()
        if self.accelerator.is_main_process:
            loss = float(totals["loss"].sum() / pairs.sum())
            current_step().report(self.state.global_step, self.args.max_steps, loss=loss)
            means = {name: self._by_task(value / np.maximum(pairs, 1), pairs) for name, value in totals.items()}
            row = {
                "step": self.state.global_step,
                "weights": dict(zip(self.tasks, alpha.tolist(), strict=True)),
                "pairs": dict(zip(self.tasks, pairs.tolist(), strict=True)),
                **means,
            }
            with self.trajectory.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")

    def _by_task(self, means: np.ndarray[Any, Any], pairs: np.ndarray[Any, Any]) -> dict[str, float | None]:
        """A task without a pair in the step has no mean."""
        return {
            task: float(mean) if count else None
            for task, mean, count in zip(self.tasks, means, pairs, strict=True)
        }


def _dealt(rows: list[dict[str, Any]], world: int, rank: int) -> list[dict[str, Any]]:
    """One process's share of the sorted pairs: dealt to and fro, for about as many tokens to each."""
    turns = range(len(rows) // world)
    return [rows[turn * world + (world - 1 - rank if turn % 2 else rank)] for turn in turns]


def _ids(row: dict[str, Any]) -> PairIds:
    return PairIds(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"])


@contextmanager
def _readable(checkpoint: Path | None) -> Iterator[None]:
    """Name the checkpoint that holds more than tensors and numbers, which is all that torch unpickles of it."""
    try:
        yield
    except (UnpicklingError, SafetensorError) as error:
        pickled = isinstance(error, UnpicklingError)  # torch's own words advise to run it all the same
        reason = "a file of it is a pickle that could run code" if pickled else str(error)
        raise TrainingError(f"{checkpoint} cannot be read: {reason}; remove it, and start again") from error


class _AfterStep(TrainerCallback):  # type: ignore[misc]
    """A step's end comes before its checkpoint, so that one holds the mixer as it stands after its step."""

    def __init__(self, trainer: MixingTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.trainer.finish_step()
