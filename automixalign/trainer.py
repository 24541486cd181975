"""TRL's DPOTrainer with the batch and the objective in the hands of a mixer.

What differs from `trl.DPOTrainer`, and nothing else does:

- pairs come tokenised and with their reference log-probabilities, so nothing is prepared or precomputed again;
- the pairs of a step are drawn when the step begins, with the task weights of that moment. A sampler would have
  been asked for them several steps ahead;
- the loss of a step is `mean_z w_z e(z)` (see `mixers.py`), rebuilt per pair from the log-probabilities of
  TRL's own forward pass, plus TRL's `sft` term where the loss list asks for it;
- a checkpoint also holds the mixer, the position of the draws and the average of the iterates.
"""

import json
import math
import shutil
import sys
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

from automixalign import checkpoints, files, progress
from automixalign.averaging import IterateAverage
from automixalign.checkpoints import Checkpoints
from automixalign.errors import TrainingError
from automixalign.losses import NLL, from_trl
from automixalign.mixers import Draws, Mixer

_ROW = ("prompt_ids", "chosen_ids", "rejected_ids", "ref_chosen_logps", "ref_rejected_logps")
_SPECIALIST = "specialist_loss"
_EXTRA = ("task", _SPECIALIST, "weight")


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
        self.pair_loss, nll_weight = from_trl(args, kwargs.get("eval_dataset"))
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
        # The preference loss is ours; of its list TRL computes the NLL term, or a loss that nobody looks at.
        self.adds_nll = nll_weight > 0
        self.loss_types, self.loss_weights = ([NLL], [nll_weight]) if self.adds_nll else (["sigmoid"], [1.0])
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
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self._last_checkpoint()
        checkpoint = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        if checkpoint is not None:
            self._restore(checkpoint)
        elif self.accelerator.is_main_process:
            files.write_text(self.trajectory, "")
        with _readable(checkpoint):
            result = super().train(resume_from_checkpoint=str(checkpoint) if checkpoint else None, **kwargs)
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
        self.draws.taken = state["taken"]
        if self.average is not None:
            self.average.load(checkpoint, state["averaged"])
        if self.accelerator.is_main_process:
            print(f"goes on after step {state['step']}, from {checkpoint}", file=sys.stderr)  # noqa: T201
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
            "taken": self.draws.taken,
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
    ) -> tuple[list[dict[str, torch.Tensor]], None]:
        """Draw the step's pairs with the current task weights; return this rank's micro-batches."""
        tasks = self.mixer.draw(self.state.global_step, self.pairs_per_step)
        weights = self.mixer.example_weights(tasks)
        rows = [
            {**self.by_task[task][self.draws.next(task)], "task": task, "weight": weight}
            for task, weight in zip(tasks.tolist(), weights.tolist(), strict=True)
        ]
        size, world = self.args.per_device_train_batch_size, self.accelerator.num_processes
        mine = [(batch * world + self.accelerator.process_index) * size for batch in range(num_batches)]
        return [self._collate(rows[start : start + size]) for start in mine], None

    def _collate(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch: dict[str, torch.Tensor] = self.data_collator([{key: row[key] for key in _ROW} for row in rows])
        for key in _EXTRA:
            batch[key] = torch.tensor([row.get(key, 0.0) for row in rows])
        return batch

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """The micro-batch's part of the step's loss; one forward pass, TRL's, whose metrics are kept."""
        task, specialist_loss, weight = (inputs.pop(key) for key in _EXTRA)
        seen: list[torch.Tensor] = []
        hook = model.register_forward_hook(lambda *call: seen.append(call[-1].log_probs))
        try:
            trl_loss = super().compute_loss(model, inputs)
        finally:
            hook.remove()
        logps, tokens = seen[0].sum(dim=1).chunk(2), inputs["completion_mask"].sum(dim=1).chunk(2)
        chosen, rejected = logps[0] - inputs["ref_chosen_logps"], logps[1] - inputs["ref_rejected_logps"]
        loss = self.pair_loss.per_pair(chosen, rejected, *tokens)
        values = {"loss": loss}
        if self.has_specialists:
            difference = loss - specialist_loss
            excess = difference.clamp(min=0)
            values |= {"difference": difference, "excess": excess, "clipped": (difference <= 0).float()}
        objective = (weight * values[self.mixer.trains_on]).mean()
        margin = self.pair_loss.beta * (chosen - rejected)
        both = inputs["attention_mask"].sum(dim=1).chunk(2)
        self._count(task, **values, margin=margin, accuracy=(margin > 0).float(), tokens=both[0] + both[1])
        if not torch.isfinite(objective):
            raise TrainingError(
                f"step {self.state.global_step + 1}: the loss is not finite (tasks "
                f"{sorted({self.tasks[i] for i in task.tolist()})}); lower the learning rate, or check the data"
            )
        return objective + trl_loss if self.adds_nll else objective

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
            progress.current().report(self.state.global_step, self.args.max_steps, loss=loss)
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
