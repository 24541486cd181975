"""TRL's DPOTrainer with the batch and the objective in the hands of a mixer.

What differs from `trl.DPOTrainer`, and nothing else does:

- pairs come tokenised and with their reference log-probabilities, so nothing is prepared or precomputed again;
- the pairs of a step are drawn when the step begins, with the task weights of that moment. A sampler would have
  been asked for them several steps ahead;
- the loss of a step is `mean_z w_z e(z)` (see `mixers.py`), rebuilt per pair from the log-probabilities of
  TRL's own forward pass, plus TRL's `sft` term where `nll_weight` asks for it.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer

from automixalign import progress
from automixalign.errors import TrainingError
from automixalign.mixers import Draws, Mixer

_ROW = ("prompt_ids", "chosen_ids", "rejected_ids", "ref_chosen_logps", "ref_rejected_logps")
_EXTRA = ("task", "specialist_loss", "weight")


class MixingTrainer(DPOTrainer):  # type: ignore[misc]  # trl ships no types
    """Train a policy by DPO on several tasks, mixed by a `Mixer`.

    Args:
        model: the policy (full, or with a `peft_config` in `kwargs`).
        args: TRL's configuration; batch size, accumulation and world size give the pairs of a step.
        datasets: per task, in the mixer's order, a data set with the columns `prompt_ids`, `chosen_ids`,
            `rejected_ids`, `ref_chosen_logps`, `ref_rejected_logps` and, for generalists, `specialist_loss`.
        mixer: draws the tasks, weighs the pairs and learns from their excess.
        trajectory: JSONL file that gets a line an optimiser step.

    Raises:
        TrainingError: the loss of a step is not finite.
    """

    def __init__(
        self,
        model: Any,
        args: DPOConfig,
        datasets: dict[str, Dataset],
        mixer: Mixer,
        trajectory: Path,
        **kwargs: Any,
    ) -> None:
        self.tasks = list(datasets)
        self.by_task = list(datasets.values())
        self.mixer = mixer
        self.draws = Draws([len(data) for data in self.by_task], args.seed)
        self.trajectory = trajectory
        self.totals: dict[str, torch.Tensor] = {}
        args.precompute_ref_log_probs = True
        super().__init__(model=model, args=args, train_dataset=self.by_task[0], **kwargs)
        self.pairs_per_step = (
            args.per_device_train_batch_size * args.gradient_accumulation_steps * self.accelerator.num_processes
        )
        self.add_callback(_AfterStep(self))

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
        chosen, rejected = seen[0].sum(dim=1).chunk(2)
        ratios = (chosen - inputs["ref_chosen_logps"]) - (rejected - inputs["ref_rejected_logps"])
        loss = -F.logsigmoid(self.beta * ratios)
        excess = (loss - specialist_loss).clamp(min=0)
        objective = (weight * (excess if self.mixer.clipped else loss)).mean()
        self._count(task, loss=loss, excess=excess, clipped=(excess == 0), accuracy=(ratios > 0))
        if not torch.isfinite(objective):
            raise TrainingError(
                f"step {self.state.global_step + 1}: the loss is not finite (tasks "
                f"{sorted({self.tasks[i] for i in task.tolist()})}); lower the learning rate, or check the data"
            )
        return objective + trl_loss if "sft" in self.loss_types else objective

    def _count(self, task: torch.Tensor, **values: torch.Tensor) -> None:
        """Add up, per task, over the micro-steps of an optimiser step."""
        values["pairs"] = torch.ones_like(task)
        for name, value in values.items():
            sums = torch.zeros(len(self.tasks), dtype=torch.float64, device=task.device)
            sums.index_add_(0, task, value.detach().double())
            self.totals[name] = self.totals[name] + sums if name in self.totals else sums

    def finish_step(self) -> None:
        """Show the mixer what the step saw, over all ranks, and write it to the trajectory."""
        totals = {
            name: self.accelerator.reduce(value, "sum").cpu().numpy() for name, value in self.totals.items()
        }
        self.totals = {}
        alpha = self.mixer.weights()
        pairs = totals.pop("pairs").astype(np.int64)
        self.mixer.update(totals["excess"], pairs)
        loss = float(totals["loss"].sum() / pairs.sum())
        progress.current().report(self.state.global_step, self.args.max_steps, loss=loss)
        if self.accelerator.is_main_process:
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


class _AfterStep(TrainerCallback):  # type: ignore[misc]
    """Runs before the Trainer saves a checkpoint, so that one holds the mixer as it stands after its step."""

    def __init__(self, trainer: MixingTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.trainer.finish_step()
