"""Trains, merges and measures the models of one seed, each once, through the library and without Kubeflow.

The store keeps data, reference log-probabilities and specialists a task at a time. A setup with one more task
therefore trains only one more specialist.
"""

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from automixalign.config.data import VerifierSpec
from automixalign.config.evaluation import EvaluationSettings
from automixalign.config.experiment import Experiment
from automixalign.config.merges import MergeSpec
from automixalign.config.methods import GeneralistSettings
from automixalign.config.plan import Plan
from automixalign.config.sources import parse_base_model, parse_task
from automixalign.config.training import SpecialistLossesSettings, specialist_name
from automixalign.data.prepare import prepare_data
from automixalign.data.store import TEST, VALIDATION, read_card, read_split
from automixalign.merging.merge import merge_specialists
from automixalign.models.base_address import BaseAddress
from automixalign.models.load import autocast, load_full_model, load_model, load_tokenizer
from automixalign.models.prepare import prepare_base_model
from automixalign.report import leaderboard
from automixalign.scoring.evaluate import evaluate
from automixalign.scoring.reference_logps import write_reference_logps
from automixalign.scoring.verifiers.registry import make_verifier
from automixalign.storage import files
from automixalign.training.generalist import GeneralistTraining
from automixalign.training.launch import train
from automixalign.training.specialist import SpecialistTraining
from automixalign.training.specialist_losses import write_specialist_losses
from benchmarks.quality.arms import REFERENCE, Arm, Merge, Options
from benchmarks.quality.store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TERMINAL = "AMA_QUALITY_TERMINAL"
"""The environment variable that holds the terminal's file descriptor in worker processes."""
_MODEL, _TRAJECTORY, _SCORES, _FACTS = "model", "trajectory.jsonl", "scores", "facts.json"

Row = dict[str, Any]
"""An arm's `arm` and `family`, its costs, its `late` means, and the metrics of each task by split."""


class SeedModels:
    """The models of one seed of a setup.

    Args:
        experiment: tasks, base model, training and budgets. Its methods and merges are not used.
        verifiers: task -> verifier, for tasks whose configuration cannot name one.
        base_tasks: synthetic tasks that a tiny base model learns; by default the experiment's own.
        drift_pairs: number of test pairs of each task over which the drift is measured.
    """

    def __init__(
        self,
        store: Store,
        experiment: Experiment,
        verifiers: Mapping[str, str] | None = None,
        base_tasks: list[str] | None = None,
        drift_pairs: int = 32,
    ) -> None:
        self.store, self.experiment = store, experiment
        self.base_tasks, self.drift_pairs = base_tasks, drift_pairs
        self.tasks = [task.name for task in experiment.tasks]
        self.verifiers = dict(verifiers or {})
        base_model = parse_base_model(experiment.base_model.source, experiment.base_model.revision)
        sources = {task.name: parse_task(task.name, task.sources[0]).fingerprint() for task in experiment.tasks}
        self.plan = Plan.of(experiment, {**sources, "base_model": base_model.fingerprint()})

    @cached_property
    def base_model(self) -> Path:
        """The model every policy starts from. All seeds share it, unless it is a tiny model trained here."""
        settings = self.plan.base_model
        if settings.base_model.tiny is None:
            settings = settings.model_copy(update={"seed": 0, "synthetic_tasks": []})
        elif self.base_tasks is not None:
            settings = settings.model_copy(update={"synthetic_tasks": self.base_tasks})

        def prepare(new: Path) -> None:
            prepare_base_model(settings, new)
            BaseAddress("base", None).write(new)  # without an address, every adapter would be a full model

        return self.store.result("base", settings, prepare)

    def data(self, task: str) -> Path:
        """The folder of prepared splits of one task."""
        number, plan = self.tasks.index(task), self.plan.data
        one_task = {"tasks": [plan.tasks[number]], "fingerprints": [plan.fingerprints[number]]}
        settings = plan.model_copy(update=one_task)
        return self.store.result(
            "data",
            [settings, self.base_model],
            lambda new: prepare_data(settings, load_tokenizer(self.base_model), make_verifier, new),
        )

    def reference_logps(self, task: str) -> Path:
        """The folder of reference log-probabilities of one task."""
        data, settings = self.data(task), self.plan.scoring
        return self.store.result(
            "reference",
            [settings, data, self.base_model],
            lambda new: write_reference_logps(settings, data, self.base_model, new),
        )

    def _of_task(self, task: str) -> dict[str, Path]:
        """The paths that scoring and training of one task read."""
        return {
            "data": self.data(task),
            "reference_logps": self.reference_logps(task),
            "base_model": self.base_model,
        }

    def specialist(self, task: str) -> Path:
        """A folder with the specialist, its trajectory, its scores, and the facts of its training."""
        settings, paths = self.plan.specialist, self._of_task(task)

        def make(new: Path) -> None:
            outputs = {"output": new / _MODEL, "trajectory": new / _TRAJECTORY, "scores": new / _SCORES}
            facts = train(SpecialistTraining(settings=settings, task=task, **paths, **outputs))
            files.write_json(new / _FACTS, facts)

        return self.store.result("specialist", [settings, task, paths["data"], paths["reference_logps"]], make)

    def specialist_scores(self, task: str, split: str) -> Path:
        """The evaluation of a specialist on its own task."""
        if split != TEST:
            return self.specialist_scores(task, TEST) / split
        specialist, settings = self.specialist(task), self._evaluation([task], generate=False)

        def make(new: Path) -> None:
            paths = {"tokenizer": self.base_model, "model": specialist / _MODEL, "output": new}
            evaluate(settings, specialist_name(task), "specialist", **self._of_task(task), **paths)

        return self.store.result("specialist_scores", [settings, task, specialist], make)

    def losses(self, task: str, cross_fit: bool) -> Path:
        """The cached losses of a specialist on its own task."""
        specialist, scores = self.specialist(task), self.specialist_scores(task, TEST)
        fold = self.plan.specialist.for_a_half() if cross_fit else None
        settings = SpecialistLossesSettings.model_validate(
            {**self.plan.specialist_losses.model_dump(), "fold": fold and fold.model_dump()}
        )

        def make(new: Path) -> None:
            paths = {"scores": specialist / _SCORES, "evaluation": scores, "output": new}
            write_specialist_losses(settings, task=task, **self._of_task(task), **paths)

        return self.store.result("losses", [settings, task, specialist], make)

    @cached_property
    def joint(self) -> dict[str, Path]:
        """The paths that scoring and training of all tasks read."""
        data = {task: self.data(task) for task in self.tasks}
        logps = {task: self.reference_logps(task) for task in self.tasks}

        def make(new: Path) -> None:
            files.gather({task: folder / task for task, folder in data.items()}, new / "data")
            cards = [read_card(folder) for folder in data.values()]
            card = {**cards[0], "tasks": [task for card in cards for task in card["tasks"]]}
            files.write_json(new / "data" / "card.json", card)
            files.gather({task: folder / task for task, folder in logps.items()}, new / "reference")

        folder = self.store.result("joint", [[data[task], logps[task]] for task in self.tasks], make)
        paths = {"data": folder / "data", "reference_logps": folder / "reference"}
        return {**paths, "base_model": self.base_model}

    def reference_row(self, splits: Sequence[str]) -> Row:
        """Measure the base model."""
        return self._measure(REFERENCE, "reference", [], splits, lambda _: (self.base_model, {}))

    def specialist_row(self, task: str, splits: Sequence[str]) -> Row:
        """Measure a specialist on every task."""
        folder = self.specialist(task)
        facts = files.read_json(folder / _FACTS)
        return self._measure(
            specialist_name(task), "specialist", [folder], splits, lambda _: (folder / _MODEL, facts)
        )

    def row(self, arm: Arm | Merge, options: Options, splits: Sequence[str]) -> Row:
        """Make and measure an arm with some options."""
        make = self.generalist_row if isinstance(arm, Arm) else self.merge_row
        return make(arm, options, splits)  # type: ignore[arg-type]

    def generalist_row(self, arm: Arm, options: Options, splits: Sequence[str]) -> Row:
        """Train and measure a generalist with the options that were tuned, under the arm's own."""
        settings = self._generalist_settings(arm, {**options, **arm.options})
        losses = [self.losses(task, arm.cross_fit) for task in self.tasks]

        def make(folder: Path) -> tuple[Path, dict[str, Any]]:
            outputs = {"output": folder / _MODEL, "trajectory": folder / _TRAJECTORY}
            training = GeneralistTraining(settings=settings, **self.joint, losses=losses, **outputs)
            return folder / _MODEL, train(training)

        return self._measure(arm.name, "generalist", [settings, *losses], splits, make)

    def merge_row(self, merge: Merge, options: Options, splits: Sequence[str]) -> Row:
        """Merge the specialists and measure the result."""
        parameters = {key: value for key, value in options.items() if key != "weights"}
        spec = MergeSpec(method=merge.method, parameters=parameters, weights=options.get("weights", {}))
        folders = {task: self.specialist(task) for task in self.tasks}

        def make(folder: Path) -> tuple[Path, dict[str, Any]]:
            started = time.monotonic()
            merge_specialists(
                self.base_model,
                {task: specialist / _MODEL for task, specialist in folders.items()},
                method=spec.method,
                parameters=spec.parameters,
                output=folder / _MODEL,
                seed=self.experiment.seed,
                weights=spec.weights,
            )
            return folder / _MODEL, {"steps": 0, "tokens": 0, "seconds": round(time.monotonic() - started, 1)}

        return self._measure(merge.name, "merge", [spec, self.experiment.seed, *folders.values()], splits, make)

    def _generalist_settings(self, arm: Arm, options: Options) -> GeneralistSettings:
        training, budget = self.experiment.training, self.experiment.budget
        options = dict(options)
        rate = options.pop("learning_rate", 1.0) * (budget.generalist.learning_rate or training.learning_rate)
        steps = budget.generalist.steps
        if steps is None:
            raise ValueError(f"{self.experiment.name}: the budget of generalists must be in steps")
        if arm.total_compute:
            steps += sum(files.read_json(self.specialist(task) / _FACTS)["steps"] for task in self.tasks)
        return GeneralistSettings.model_validate(
            {
                "seed": self.experiment.seed,
                "plugins": ["benchmarks.mixers"],
                "training": training,
                "budget": {"steps": steps, "learning_rate": rate},
                "method": {"method": arm.method, **options},
            }
        )

    def _evaluation(self, tasks: Sequence[str], generate: bool) -> EvaluationSettings:
        settings = self.plan.evaluation
        named = {task: VerifierSpec(name=name) for task, name in self.verifiers.items()}
        verifiers = {**settings.verifiers, **named}
        generate = generate and settings.evaluation.generate
        return settings.model_copy(
            update={
                "verifiers": {task: spec for task, spec in verifiers.items() if task in tasks},
                "evaluation": settings.evaluation.model_copy(update={"generate": generate}),
            }
        )

    def _measure(
        self,
        name: str,
        family: str,
        inputs: Sequence[Any],
        splits: Sequence[str],
        make: Callable[[Path], tuple[Path, dict[str, Any]]],
    ) -> Row:
        """Make and measure a model, unless the store has its row.

        Generations and drift are measured on the test split only.

        Args:
            inputs: what determines the model.
            make: writes the model into a scratch folder; returns its path and its costs.
        """
        settings = self._evaluation(self.tasks, generate=True)
        scores = {
            split: [self.specialist_scores(task, split) for task in self.tasks] for split in (VALIDATION, TEST)
        }

        def build(new: Path) -> None:
            started = time.monotonic()
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch)
                model, facts = make(folder)
                row = {"arm": name, "family": family}
                row |= {key: facts.get(key) for key in ("steps", "tokens", "seconds")}
                row["late"] = late_means(folder / _TRAJECTORY)
                for split in splits:
                    evaluate(
                        settings if split == TEST else self._evaluation(self.tasks, generate=False),
                        name,
                        family,
                        **self.joint,
                        tokenizer=self.base_model,
                        model=model,
                        output=folder / split,
                        splits=[split],
                    )
                    (entry,) = leaderboard.build([*scores[split], folder / split], [name])
                    row[split] = entry["tasks"]
                if TEST in splits:
                    for task, value in self._drifts(model).items():
                        row[TEST][task]["drift"] = value
            files.write_json(new, row)
            _report(f"seed {self.experiment.seed}: {name} in {time.monotonic() - started:.0f} s")

        key = [name, family, settings, list(splits), self.joint["data"], *inputs]
        if TEST in splits:
            key.append(self.drift_pairs)
        row: Row = files.read_json(self.store.result("run", key, build))
        return row

    def _drifts(self, model: Path) -> dict[str, float]:
        policy = load_model(model, self.base_model).eval()
        reference = load_full_model(self.base_model).eval()
        precision = self.plan.evaluation.evaluation.precision
        pairs = {
            task: read_split(self.joint["data"], task, TEST).slice(0, self.drift_pairs) for task in self.tasks
        }
        return {task: drift(policy, reference, table, precision) for task, table in pairs.items()}


@torch.inference_mode()
def drift(policy: "PreTrainedModel", reference: "PreTrainedModel", pairs: pa.Table, precision: str) -> float:
    """The mean of KL(policy || reference) over the tokens of the chosen answers.

    Args:
        pairs: with the columns `prompt_ids` and `chosen_ids`.

    Returns:
        The mean in nats, each term over the whole vocabulary.
    """
    total, tokens = 0.0, 0
    for row in pairs.select(["prompt_ids", "chosen_ids"]).to_pylist():
        ids = torch.tensor([row["prompt_ids"] + row["chosen_ids"]], device=policy.device)
        length = len(row["chosen_ids"])
        with autocast(precision):
            logits = [
                model(input_ids=ids, logits_to_keep=length + 1, use_cache=False).logits[0, :-1]
                for model in (policy, reference)
            ]
        mine, theirs = (each.float().log_softmax(-1) for each in logits)
        total += float((mine.exp() * (mine - theirs)).sum())
        tokens += length
    return total / tokens


def late_means(trajectory: Path) -> dict[str, dict[str, float]]:
    """Each task's weight, pairs a step and excess a pair over the last quarter of a training."""
    steps = files.read_jsonl(trajectory) if trajectory.exists() else []
    steps = steps[-len(steps) // 4 :]
    late = {}
    for task in steps[0]["weights"] if steps else ():
        pairs = sum(step["pairs"][task] for step in steps)
        excess = sum(step["pairs"][task] * (step["excess"][task] or 0) for step in steps)
        late[task] = {
            "weight": fmean(step["weights"][task] for step in steps),
            "pairs": pairs / len(steps),
            "excess": excess / max(pairs, 1),
        }
    return late


def _report(line: str) -> None:
    """Write a line to the terminal, also from a worker process whose output goes to a log."""
    os.write(int(os.environ.get(TERMINAL, "2")), f"{line}\n".encode())
