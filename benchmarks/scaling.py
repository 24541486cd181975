"""Measures how the cost of each stage grows with the rows of the data, and with the number of tasks.

    python -m benchmarks.scaling [--most 100000] [--repeats 3] [--json FILE]

The stages run on a tiny model and rows of a few tokens: 2 to 16 tasks of 2,000 rows each, then two tasks with
1,000 to 100,000 rows together. Cost is seconds of processor time on one thread, which depends little on other
load: medians of runs in one process, which first runs every stage once on few rows.

Two exponents are fitted by least squares in log-log over all sizes. `cost` includes the constant part of a
stage, which makes small sizes look expensive and the exponent small. `marginal` comes from the differences
between successive sizes, where the constant part cancels: cost = a + b n^p has differences that grow with
n^p. A dash means that a difference is lost in the noise. `grows` is the share of the largest size's cost that
the smallest size does not have. Where it is small, the cost is constant and the marginal exponent says
little.

`training set-up` is that of an AMA-R generalist: joining the caches, its key, TRL's trainer, saving.
`leaderboard`, `plots` and `report` are parts of `compare`, for an experiment with a specialist a task. The
leaderboard has models times tasks cells; its exponents along the tasks are those of its cells.
"""

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
from scipy import stats

from automixalign.storage import files
from benchmarks import harness, tiny

TASKS = (2, 4, 8, 16)
ROWS_A_TASK = 2_000
STEPS = (2, 42)
"""Of the two trainings whose difference separates set-up and steps."""
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
    """Numbers of rows: two a power of ten, from 1,000 on."""
    return [round(1000 * 10 ** (half / 2)) for half in range(2 * round(math.log10(most / 1000)) + 1)]


class Experiment:
    """An experiment below `folder` with `tasks` tasks of `rows` rows each."""

    def __init__(self, folder: Path, tasks: int, rows: int) -> None:
        from automixalign.config.experiment import parse_experiment
        from automixalign.config.plan import Plan

        os.environ["AMA_CHECKPOINTS"] = str(folder / "checkpoints")
        self.folder = folder
        self.base, self.data = folder / "base", folder / "data"
        self.reference_logps = folder / "reference_logps"
        self.inputs = {"data": self.data, "reference_logps": self.reference_logps, "base_model": self.base}
        tiny.write_base_model(self.base)
        names = [f"task-{number:02}" for number in range(tasks)]
        for name in names:
            source = ({"prompt": f"{name} {n} =", "chosen": f" {n}", "rejected": " no"} for n in range(rows))
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
        self.plan = Plan.of(self.experiment, dict.fromkeys(["base_model", *names], ""))

    def prepare(self) -> None:
        tiny.prepare(self.plan.data, self.base, self.data)

    def write_reference_logps(self) -> None:
        from automixalign.scoring.reference_logps import write_reference_logps

        write_reference_logps(self.plan.scoring, self.data, self.base, self.reference_logps)

    def evaluate(self) -> None:
        from automixalign.scoring.evaluate import evaluate

        evaluate(
            self.plan.evaluation,
            name="ama-r",
            family="generalist",
            **self.inputs,
            tokenizer=self.base,
            model=self.base,
            output=self.folder / "evaluation",
        )

    def losses(self) -> None:
        """The base model takes the place of every specialist."""
        from automixalign.training.specialist_losses import write_specialist_losses

        for task in self.plan.tasks:
            write_specialist_losses(
                self.plan.specialist_losses,
                task=task,
                data=self.data,
                reference_logps=self.reference_logps,
                scores=self.reference_logps / task,
                evaluation=self.folder / "evaluation",
                output=self.folder / "losses" / task,
            )

    def train(self, steps: int) -> None:
        from automixalign.training.generalist import GeneralistTraining

        settings = self.plan.generalists[0]
        settings = settings.model_copy(update={"budget": settings.budget.model_copy(update={"steps": steps})})
        with tempfile.TemporaryDirectory() as scratch:
            GeneralistTraining(
                settings=settings,
                **self.inputs,
                losses=[self.folder / "losses" / task for task in self.plan.tasks],
                output=self.folder / "generalist",
                trajectory=self.folder / "trajectory.jsonl",
            ).run(Path(scratch))

    def compare(self) -> None:
        """The parts of `compare`; every model gets the scores of the one that was evaluated."""
        from automixalign.config.experiment import model_names
        from automixalign.config.training import specialist_name
        from automixalign.report import leaderboard, page, plots
        from automixalign.report.facts.collect import RunResults, collect
        from automixalign.scoring.metrics.registry import ranked_metrics

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
        for task in self.plan.tasks:  # a specialist's log has its own task only
            logs[specialist_name(task)] = self.folder / f"trajectory-{task}.jsonl"
            only = [{key: {task: of[task]} if key != "step" else of for key, of in row.items()} for row in rows]
            files.write_jsonl(logs[specialist_name(task)], only)
        caches = [self.folder / "losses" / task for task in self.plan.tasks]
        with self.timed("leaderboard"):
            entries = leaderboard.build(evaluations, names)
        with self.timed("plots"):
            plots.weight_trajectories({"ama-r": rows}, self.folder / "weights.png")
            for metric in ranked_metrics():
                plots.task_bars(entries, metric, self.folder / f"{metric}.png")
        with self.timed("report"):
            results = RunResults(
                evaluations=evaluations, trajectories=logs, costs={}, data=self.data, losses=caches
            )
            facts = collect(self.plan.comparison, entries, results)
            page.write(facts, self.folder / "index.html", self.folder / "data.json")

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        gc.collect()  # the garbage of the previous stage
        began = time.process_time()
        yield
        self.costs[stage] = time.process_time() - began

    def run(self) -> dict[str, float]:
        """The seconds of processor time of each of `STAGES`."""
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
    """The median cost of each stage."""
    runs = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="ama-scaling-") as folder, redirect_stdout(io.StringIO()):
            runs.append(Experiment(Path(folder), tasks, rows).run())
        gc.collect()
    return {stage: statistics.median(run[stage] for run in runs) for stage in STAGES}


def slope(sizes: list[int], costs: list[float]) -> float:
    """The least-squares slope of log cost on log size."""
    return float(stats.linregress(np.log(sizes), np.log(costs)).slope)


def exponents(sizes: list[int], costs: list[float]) -> dict[str, float | None]:
    """The exponents of one stage as the module describes them; None where there is none."""
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
        medians = cost(tasks, rows, repeats)
        rounded = {stage: round(value, 3) for stage, value in medians.items()}
        print(f"{axis} {point}: {json.dumps(rounded)}", file=sys.stderr)
        for stage, value in medians.items():
            costs[stage].append(value)
    cells = [point * (point + 2) for point in points]  # reference, a specialist a task, one generalist
    by = {"leaderboard": cells} if axis == "tasks" else {}
    fits = {stage: exponents(by.get(stage, points), values) for stage, values in costs.items()}
    return {"axis": axis, "sizes": points, "costs": costs, "exponents": fits}


def show(result: dict[str, Any]) -> None:
    """Print one row a stage."""
    points = result["sizes"]
    rows = []
    for stage, costs in result["costs"].items():
        fit = result["exponents"][stage]
        exponents = ["-" if fit[name] is None else f"{fit[name]:.2f}" for name in ("cost", "marginal")]
        rows.append([stage, *(f"{value:.3f}" for value in costs), *exponents, f"{fit['grows']:.0%}"])
    title = f"seconds of processor time by {result['axis']}; exponents from {points[0]:,} to {points[-1]:,}"
    columns = ["stage", *(f"{size:,}" for size in points), "cost", "marginal", "grows"]
    harness.show(title, columns, rows)


def _prepare_process() -> None:
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    cost(2, 40, 1)
    gc.collect()
    gc.freeze()  # spares every stage the imported objects


def main() -> None:
    """Measure, print the tables, and write them as JSON."""
    parser = harness.parser(__doc__)
    parser.add_argument("--most", type=int, default=100_000, help="rows")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    _prepare_process()
    results = [
        measure("tasks", list(TASKS), lambda tasks: (tasks, ROWS_A_TASK), options.repeats),
        measure("rows", sizes(options.most), lambda rows: (2, rows // 2), options.repeats),
    ]
    for result in results:
        show(result)
    harness.write(options, results)


if __name__ == "__main__":
    main()
