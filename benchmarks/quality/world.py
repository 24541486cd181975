"""One experiment's models, each trained and measured once: through the library, without Kubeflow's runner.

What several arms, setups or sweeps have in common (data, reference log-probabilities, specialists) is kept a
task at a time in the store, so that a setup with a task more trains one specialist more.
"""

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

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
from automixalign.models.load import load_full_model, load_model, load_tokenizer
from automixalign.models.prepare import prepare_base_model
from automixalign.report import leaderboard
from automixalign.scoring.evaluate import evaluate
from automixalign.scoring.reference_logps import write_reference_logps
from automixalign.scoring.verifiers.registry import registered_verifiers
from automixalign.storage import files
from automixalign.training.launch import train
from automixalign.training.specialist_losses import write_specialist_losses
from automixalign.training.train import GeneralistTraining, SpecialistTraining
from benchmarks.quality.arms import REFERENCE, Arm, Merge, Options
from benchmarks.quality.drift import drift
from benchmarks.quality.store import Store

_REFERENCE = "reference"
_ROW, _MODEL, _TRAJECTORY, _FACTS = "row.json", "model", "trajectory.jsonl", "facts.json"


class World:
    """What the arms of one seed of a setup share.

    Args:
        experiment: tasks, base model, training and budgets; its methods and merges do not matter.
        verifiers: task -> verifier, where the configuration has no name for it.
        base_tasks: synthetic tasks whose forms a base model that is trained here learns, where not the
            experiment's own.
        drift_pairs: test pairs of each task along which the drift is measured.
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
        sources = {task.name: parse_task(task.name, task.source).fingerprint() for task in experiment.tasks}
        self.plan = Plan.of(experiment, {**sources, "base_model": base_model.fingerprint()})

    @cached_property
    def base_model(self) -> Path:
        """Where every policy starts from; it does not depend on the seed unless it is trained here."""
        settings = self.plan.base_model
        if settings.base_model.tiny is None:
            settings = settings.model_copy(update={"seed": 0, "synthetic_tasks": []})
        elif self.base_tasks is not None:
            settings = settings.model_copy(update={"synthetic_tasks": self.base_tasks})
        return self.store.made("base", settings, lambda new: prepare_base_model(settings, new))

    def data(self, task: str) -> Path:
        """A folder of prepared splits of this task alone."""
        place = self.tasks.index(task)
        settings = self.plan.data.model_copy(
            update={
                "tasks": [self.plan.data.tasks[place]],
                "fingerprints": [self.plan.data.fingerprints[place]],
            }
        )
        inputs = [settings, self.base_model]
        return self.store.made(
            "data",
            inputs,
            lambda new: prepare_data(settings, load_tokenizer(self.base_model), registered_verifiers(), new),
        )

    def reference_logps(self, task: str) -> Path:
        """The cache folder of this task alone."""
        data, settings = self.data(task), self.plan.scoring
        inputs = [settings, data, self.base_model]
        return self.store.made(
            "reference", inputs, lambda new: write_reference_logps(settings, data, self.base_model, new)
        )

    def specialist(self, task: str) -> Path:
        """A folder with the specialist, its trajectory and what its training returned."""
        settings = self.plan.specialist
        inputs = [settings, task, self.data(task), self.reference_logps(task)]

        def make(new: Path) -> None:
            training = SpecialistTraining(
                settings=settings,
                task=task,
                data=self.data(task),
                reference_logps=self.reference_logps(task),
                base_model=self.base_model,
                output=new / _MODEL,
                trajectory=new / _TRAJECTORY,
            )
            files.write_json(new / "facts.json", train(training))

        return self.store.made("specialist", inputs, make)

    def specialist_scores(self, task: str, split: str) -> Path:
        """The evaluation of a specialist on its own task."""
        specialist = self.specialist(task)
        settings = self._evaluation([task], generate=False)

        def make(new: Path) -> None:
            name = specialist_name(task)
            places = (self.data(task), self.reference_logps(task), self.base_model, specialist / _MODEL, new)
            evaluate(settings, name, "specialist", *places, split)

        return self.store.made("specialist_scores", [settings, task, split, specialist], make)

    def losses(self, task: str, cross_fit: bool) -> Path:
        """The cache of the specialist's losses."""
        specialist, scores = self.specialist(task), self.specialist_scores(task, TEST)
        fold = self.plan.specialist.for_a_half() if cross_fit else None
        settings = SpecialistLossesSettings.model_validate(
            {**self.plan.specialist_losses.model_dump(), "fold": fold and fold.model_dump()}
        )
        places = (self.data(task), self.reference_logps(task), self.base_model, specialist / _MODEL, scores)
        return self.store.made(
            "losses",
            [settings, task, specialist],
            lambda new: write_specialist_losses(settings, task, *places, new),
        )

    @cached_property
    def joint(self) -> tuple[Path, Path]:
        """Data and reference log-probabilities of all tasks: the folders of the single ones side by side."""
        parts = {task: (self.data(task), self.reference_logps(task)) for task in self.tasks}

        def make(new: Path) -> None:
            files.gather({task: data / task for task, (data, _) in parts.items()}, new / "data")
            cards = [read_card(data) for data, _ in parts.values()]
            card = {**cards[0], "tasks": [task for card in cards for task in card["tasks"]]}
            files.write_json(new / "data" / "card.json", card)
            files.gather({task: logps / task for task, (_, logps) in parts.items()}, new / _REFERENCE)

        folder = self.store.made("joint", [list(paths) for paths in parts.values()], make)
        return folder / "data", folder / _REFERENCE

    def reference_row(self, splits: Sequence[str]) -> dict[str, Any]:
        """The base model itself."""
        return self._measured(REFERENCE, "reference", [], splits, lambda _: (self.base_model, {}))

    def specialist_row(self, task: str, splits: Sequence[str]) -> dict[str, Any]:
        """A specialist on every task."""
        folder, name = self.specialist(task), specialist_name(task)
        facts = files.read_json(folder / _FACTS)
        return self._measured(name, "specialist", [folder], splits, lambda _: (folder / _MODEL, facts))

    def generalist_row(self, arm: Arm, options: Options, splits: Sequence[str]) -> dict[str, Any]:
        """Train and measure a generalist; `options` are those that were tuned."""
        settings = self._generalist(arm, {**options, **arm.options})
        losses = [self.losses(task, arm.cross_fit) for task in self.tasks]
        data, reference_logps = self.joint

        def make(folder: Path) -> tuple[Path, dict[str, Any]]:
            training = GeneralistTraining(
                settings=settings,
                data=data,
                reference_logps=reference_logps,
                base_model=self.base_model,
                losses=losses,
                output=folder / _MODEL,
                trajectory=folder / _TRAJECTORY,
            )
            return folder / _MODEL, train(training)

        return self._measured(arm.name, "generalist", [settings, *losses], splits, make)

    def merge_row(self, merge: Merge, options: Options, splits: Sequence[str]) -> dict[str, Any]:
        """Merge the specialists and measure what comes of it."""
        parameters = {key: value for key, value in options.items() if key != "weights"}
        spec = MergeSpec(method=merge.method, parameters=parameters, weights=options.get("weights", {}))
        specialists = {task: self.specialist(task) / _MODEL for task in self.tasks}

        def make(folder: Path) -> tuple[Path, dict[str, Any]]:
            started = time.monotonic()
            merge_specialists(
                self.base_model,
                specialists,
                spec.method,
                spec.parameters,
                folder / _MODEL,
                self.experiment.seed,
                spec.weights,
            )
            return folder / _MODEL, {"steps": 0, "tokens": 0, "seconds": round(time.monotonic() - started, 1)}

        inputs = [spec, self.experiment.seed, *(self.specialist(task) for task in self.tasks)]
        return self._measured(merge.name, "merge", inputs, splits, make)

    def _generalist(self, arm: Arm, options: Options) -> GeneralistSettings:
        training, budget = self.experiment.training, self.experiment.budget
        options = dict(options)
        rate = options.pop("learning_rate", 1.0) * (budget.generalist.learning_rate or training.learning_rate)
        steps = budget.generalist.steps
        assert steps is not None  # a setup says how many
        if arm.total_compute:
            steps += sum(files.read_json(self.specialist(task) / _FACTS)["steps"] for task in self.tasks)
        return GeneralistSettings.model_validate(
            {
                "seed": self.experiment.seed,
                "extensions": ["benchmarks.mixers"],
                "training": training,
                "budget": {"steps": steps, "learning_rate": rate},
                "method": {"method": arm.method, **options},
            }
        )

    def _evaluation(self, tasks: Sequence[str], generate: bool) -> EvaluationSettings:
        settings = self.plan.evaluation
        verifiers = {**settings.verifiers, **self.verifiers}
        return settings.model_copy(
            update={
                "verifiers": {task: name for task, name in verifiers.items() if task in tasks},
                "evaluation": settings.evaluation.model_copy(
                    update={"generate": generate and settings.evaluation.generate}
                ),
            }
        )

    def _measured(
        self, name: str, family: str, inputs: list[Any], splits: Sequence[str], make: Any
    ) -> dict[str, Any]:
        """`name`'s entry on each split with its cost: `{"validation": ..., "test": ..., "seconds": ...}`.

        Generations and drift are measured on the test split only.
        """
        settings = self._evaluation(self.tasks, generate=True)
        data, reference_logps = self.joint
        own = {
            split: [self.specialist_scores(task, split) for task in self.tasks] for split in (VALIDATION, TEST)
        }

        def build(new: Path) -> None:
            new.mkdir()
            started = time.monotonic()
            with tempfile.TemporaryDirectory() as scratch:
                model, facts = make(Path(scratch))
                row = {key: facts.get(key) for key in ("steps", "tokens", "seconds")}
                for split in splits:
                    here = settings if split == TEST else self._evaluation(self.tasks, generate=False)
                    places = (data, reference_logps, self.base_model, model, Path(scratch) / split)
                    evaluate(here, name, family, *places, split)
                    (entry,) = leaderboard.build([*own[split], places[-1]], [name])
                    row[split] = entry["tasks"]
                if TEST in splits:
                    for task, value in self._drifts(model).items():
                        row[TEST][task]["drift"] = value
                log = Path(scratch) / _TRAJECTORY
                if log.exists():
                    files.link(log, new / _TRAJECTORY)
            files.write_json(new / _ROW, row)
            say(f"seed {self.experiment.seed}: {name} in {time.monotonic() - started:.0f} s")

        inputs = [name, family, settings, list(splits), data, *inputs]
        if TEST in splits:
            inputs.append(self.drift_pairs)
        folder = self.store.made("run", inputs, build)
        row: dict[str, Any] = files.read_json(folder / _ROW)
        return {"arm": name, "family": family, **row, "folder": folder}

    def _drifts(self, model: Path) -> dict[str, float]:
        policy = load_model(model, self.base_model).eval()
        reference = load_full_model(self.base_model).eval()
        data, _ = self.joint
        precision = self.plan.evaluation.evaluation.precision
        return {
            task: drift(policy, reference, read_split(data, task, TEST).slice(0, self.drift_pairs), precision)
            for task in self.tasks
        }


def say(line: str) -> None:
    """Tell the terminal, also from a worker whose output goes to a log."""
    os.write(int(os.environ.get(TERMINAL, "2")), f"{line}\n".encode())


TERMINAL = "AMA_QUALITY_TERMINAL"
"""The environment variable with the number of the file that the terminal is."""
