"""How the cost of each step grows with the rows of the data, and with the number of tasks.

    python -m benchmarks.scaling [--most 100000] [--repeats 3] [--json FILE]

The library's steps on a model of some thousand weights and rows of a few tokens: 2 to 16 tasks of 2,000 rows
each, then two tasks with 1,000 to 100,000 rows together. Cost is seconds of processor time on one thread, so
that it depends little on what else the machine does: medians of runs in one process, which has run every step
once on little data before it measures.

Two exponents are fitted by least squares in log-log over all sizes: `cost`, in which the constant part of a
step makes small sizes look dear and the exponent small; and `marginal`, from the differences between sizes that
follow each other in a constant ratio, in which it cancels: cost = a + b n^p has differences that grow with n^p.
A dash stands where a difference is lost in the noise. `grows` is the share of the largest size's cost that is
not there at the smallest: where it is small, the marginal exponent says little, and the cost is constant.

The training is the set-up of an AMA-R generalist (joining the caches, its key, TRL's trainer, saving) and,
apart from it, one step. `leaderboard`, `plots` and `report` are the parts of `compare`, of an experiment with a
specialist a task. The leaderboard is a table of models times tasks, so its exponents along the tasks are those
of its cells.
"""

import argparse
import gc
import io
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from automixalign.storage import files

TASKS = (2, 4, 8, 16)
ROWS_A_TASK = 2_000
STEPS = (2, 42)
"""Of the two trainings that set-up and steps are told apart by."""
STAGES = (
    "prepare_data",
    "reference_logps",
    "training set-up",
    "training step",
    "specialist_losses",
    "evaluate",
    "leaderboard",
    "plots",
    "report",
)


def sizes(most: int) -> list[int]:
    """From 1,000 rows on, two a power of ten."""
    return [round(1000 * 10 ** (place / 2)) for place in range(2 * round(math.log10(most / 1000)) + 1)]


class Experiment:
    """An experiment's files below `folder`: `tasks` tasks of `rows` rows each."""

    def __init__(self, folder: Path, tasks: int, rows: int) -> None:
        from automixalign.config.experiment import parse_experiment
        from automixalign.config.plan import Plan
        from benchmarks import tiny

        os.environ["AMA_CHECKPOINTS"] = str(folder / "checkpoints")
        self.folder = folder
        self.base, self.data, self.reference_logps = (
            folder / "base",
            folder / "data",
            folder / "reference_logps",
        )
        tiny.write_base_model(self.base)
        names = [f"task-{number:02}" for number in range(tasks)]
        for name in names:
            source = (
                {"prompt": f"{name} {row} =", "chosen": f" {row}", "rejected": " no"} for row in range(rows)
            )
            files.write_jsonl(folder / f"{name}.jsonl", ({**row, "answer": "x"} for row in source))
        described = {
            "name": "scaling",
            "base_model": str(self.base),
            "tasks": [
                {"name": name, "source": str(folder / f"{name}.jsonl"), "verifier": "exact"} for name in names
            ],
            "max_length": tiny.MAX_LENGTH,
            "split": {"test": 0.2, "validation": 0.1},
            "training": {"batch_size": 16, "learning_rate": 1e-3, "checkpoint_every": 1000},
            "evaluation": {"batch_size": 64, "max_prompts": 4, "max_new_tokens": 2},
            "budget": {"specialist": {"steps": 1}, "generalist": {"steps": 1}},
            "methods": ["ama-r"],
            "merges": [],
        }
        self.experiment = parse_experiment(described, "the benchmark")
        fingerprints = dict.fromkeys(["base_model", *names], "")
        self.plan = Plan.of(self.experiment, fingerprints)

    def prepare(self) -> None:
        from benchmarks import tiny

        tiny.prepare(self.plan.data, self.base, self.data)

    def write_reference_logps(self) -> None:
        from automixalign.scoring.reference_logps import write_reference_logps

        write_reference_logps(self.plan.scoring, self.data, self.base, self.reference_logps)

    def evaluate(self) -> None:
        from automixalign.scoring.evaluate import evaluate

        places = (self.data, self.reference_logps, self.base, self.base, self.folder / "evaluation")
        evaluate(self.plan.evaluation, "ama-r", "generalist", *places)

    def losses(self) -> None:
        """The base model stands in for every specialist."""
        from automixalign.training.specialist_losses import write_specialist_losses

        evaluation = self.folder / "evaluation"
        for task in self.plan.tasks:
            output = self.folder / "losses" / task
            places = (self.data, self.reference_logps, self.base, self.base, evaluation, output)
            write_specialist_losses(self.plan.specialist_losses, task, *places)

    def train(self, steps: int) -> None:
        from automixalign.training.train import GeneralistTraining

        settings = self.plan.generalists[0]
        settings = settings.model_copy(update={"budget": settings.budget.model_copy(update={"steps": steps})})
        with tempfile.TemporaryDirectory() as scratch:
            GeneralistTraining(
                settings=settings,
                data=self.data,
                reference_logps=self.reference_logps,
                base_model=self.base,
                losses=[self.folder / "losses" / task for task in self.plan.tasks],
                output=self.folder / "generalist",
                trajectory=self.folder / "trajectory.jsonl",
            ).run(Path(scratch))

    def compare(self) -> None:
        """The parts of `compare`; every model has the scores of the one that was evaluated."""
        from automixalign.config.experiment import model_names
        from automixalign.config.training import specialist_name
        from automixalign.report import leaderboard, page, plots
        from automixalign.report.collect import RunResults, collect
        from automixalign.scoring.metrics import BETTER

        made = self.folder / "evaluation"
        summary = files.read_json(made / "summary.json")
        names = model_names(self.experiment)
        evaluations = [self.folder / "evaluations" / name for name in names]
        for name, folder in zip(names, evaluations, strict=True):
            shutil.copytree(made, folder, copy_function=os.link)
            family = "generalist" if name == "ama-r" else name.partition("-")[0]
            files.write_json(folder / "summary.json", {**summary, "model": name, "family": family})
        logs = {"ama-r": self.folder / "trajectory.jsonl"}
        rows = files.read_jsonl(logs["ama-r"])
        for task in self.plan.tasks:  # a specialist's log is of its task alone
            logs[specialist_name(task)] = self.folder / f"trajectory-{task}.jsonl"
            only = [{key: {task: of[task]} if key != "step" else of for key, of in row.items()} for row in rows]
            files.write_jsonl(logs[specialist_name(task)], only)
        caches = [self.folder / "losses" / task for task in self.plan.tasks]
        with self.timed("leaderboard"):
            entries = leaderboard.build(evaluations, names)
        with self.timed("plots"):
            plots.weight_trajectories({"ama-r": rows}, self.folder / "weights.png")
            for metric in BETTER:
                plots.task_bars(entries, metric, self.folder / f"{metric}.png")
        with self.timed("report"):
            results = RunResults(
                evaluations=evaluations, trajectories=logs, costs={}, data=self.data, losses=caches
            )
            facts = collect(self.plan.comparison, entries, results)
            page.write(facts, self.folder / "index.html", self.folder / "data.json")

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        gc.collect()  # what the stage before has left is not this one's to clear
        began = time.process_time()
        yield
        self.costs[stage] = time.process_time() - began

    def run(self) -> dict[str, float]:
        """Seconds of processor time of each of `STAGES`."""
        self.costs: dict[str, float] = {}
        stages: dict[str, Callable[[], None]] = {
            "prepare_data": self.prepare,
            "reference_logps": self.write_reference_logps,
            "evaluate": self.evaluate,
            "specialist_losses": self.losses,
        }
        for name, stage in stages.items():
            with self.timed(name):
                stage()
        for steps in STEPS:
            with self.timed(str(steps)):
                self.train(steps)
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        few, many = (self.costs.pop(str(steps)) for steps in STEPS)
        self.costs["training step"] = (many - few) / (STEPS[1] - STEPS[0])
        self.costs["training set-up"] = few - STEPS[0] * self.costs["training step"]
        self.compare()
        return self.costs


def cost(tasks: int, rows: int, repeats: int) -> dict[str, float]:
    """Medians of each stage's cost."""
    seen = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="ama-scaling-") as place, redirect_stdout(io.StringIO()):
            seen.append(Experiment(Path(place), tasks, rows).run())
        gc.collect()
    return {stage: statistics.median(run[stage] for run in seen) for stage in STAGES}


def slope(sizes: list[int], costs: list[float]) -> float:
    """The least-squares slope of log cost on log size."""
    place = np.log(sizes) - np.mean(np.log(sizes))
    return float(np.log(costs) @ place / (place @ place))


def exponents(sizes: list[int], costs: list[float]) -> dict[str, float | None]:
    """Of one step, as described above; None where there is none."""
    differences = [after - before for before, after in pairwise(costs)]
    known = len(differences) > 1 and min(differences) > 0
    return {
        "cost": slope(sizes, costs) if min(costs) > 0 else None,
        "marginal": slope(sizes[:-1], differences) if known else None,
        "grows": 1 - costs[0] / costs[-1],
    }


def measure(
    axis: str, points: list[int], sized: Callable[[int], tuple[int, int]], repeats: int
) -> dict[str, Any]:
    """The costs along one axis, and their exponents."""
    costs: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for point in points:
        tasks, rows = sized(point)
        found = cost(tasks, rows, repeats)
        print(
            f"{axis} {point}: {json.dumps({key: round(value, 3) for key, value in found.items()})}",
            file=sys.stderr,
        )
        for stage, value in found.items():
            costs[stage].append(value)
    cells = [point * (point + 2) for point in points]  # reference, a specialist a task, one generalist
    by = {"leaderboard": cells} if axis == "tasks" else {}
    fits = {stage: exponents(by.get(stage, points), values) for stage, values in costs.items()}
    return {"axis": axis, "sizes": points, "costs": costs, "exponents": fits}


def show(result: dict[str, Any]) -> Table:
    """A row a step."""
    first, last = result["sizes"][0], result["sizes"][-1]
    table = Table(title=f"seconds of processor time by {result['axis']}; exponents from {first:,} to {last:,}")
    headers = ("step", *(f"{size:,}" for size in result["sizes"]), "cost", "marginal", "grows")
    for header in headers:
        table.add_column(header, justify="left" if header == "step" else "right")
    for stage, costs in result["costs"].items():
        fit = result["exponents"][stage]
        shown = ["-" if fit[name] is None else f"{fit[name]:.2f}" for name in ("cost", "marginal")]
        table.add_row(stage, *(f"{value:.3f}" for value in costs), *shown, f"{fit['grows']:.0%}")
    return table


def _prepare_process() -> None:
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    cost(2, 40, 1)
    gc.collect()
    gc.freeze()  # what is imported here belongs to no step, and would be gone through for each


def main() -> None:
    """Measure, print the tables, write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=100_000, help="rows")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    _prepare_process()
    results = [
        measure("tasks", list(TASKS), lambda tasks: (tasks, ROWS_A_TASK), options.repeats),
        measure("rows", sizes(options.most), lambda rows: (2, rows // 2), options.repeats),
    ]
    for result in results:
        Console(width=140).print(show(result))
    if options.json:
        files.write_json(options.json, results)


if __name__ == "__main__":
    main()
