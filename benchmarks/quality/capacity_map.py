"""Measures AMA-R minus uniform mixing by capacity, steps and number of tasks.

    python -m benchmarks.quality.capacity_map --seeds N [--json FILE] [--output runs/quality]

The tasks are those of `synthetic-conflict` and their mirror images: the first 3, 5 or 8 of `SIZES`. The base
model learns the forms of all eight. `--json FILE` keeps the seeds of FILE if its experiment is the same.
Nothing is tuned: AMA-R has its default eta and c, every LoRA rank the setup's learning rate, and full
fine-tuning a fifth of it.
"""

import itertools
import sys
from functools import partial
from pathlib import Path
from typing import Any

from automixalign.config.experiment import parse_experiment
from automixalign.data.store import TEST
from automixalign.scoring.metrics.registry import over_tasks
from automixalign.storage import files
from benchmarks.quality import sweep
from benchmarks.quality.arms import Arm
from benchmarks.quality.setups import synthetic
from benchmarks.quality.store import Store, write_results

SIZES = {
    "arithmetic": 8000,
    "format": 2000,
    "counting": 500,
    "ordering": 2000,
    "refusal": 500,
    "subtraction": 8000,
    "descending": 2000,
    "consonants": 500,
}
"""Number of training pairs of each task, in the order in which tasks are added."""
TASKS = (3, 5, 8)
CAPACITIES = (1, 4, 16, 64, "full")
"""The rank of LoRA; `full` trains all parameters."""
STEPS = (100, 300, 800)
_FULL_RATE = 1e-3
_METRICS = ("gap", "excess", "pass_rate")
_METHODS = (Arm("uniform", "uniform"), Arm("ama-r", "ama-r"))


def main() -> None:
    """Run every cell and write the results as JSON."""
    parser = sweep.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    rows = rows_of(options.json)
    new = [seed for seed in range(options.seeds) if seed not in {row["seed"] for row in rows}]
    with sweep.pool(options.jobs, options.output) as workers:
        units = [(seed, capacity) for seed in new for capacity in CAPACITIES]
        rows += [row for cells in workers.map(partial(_cells, options.output), units) for row in cells]
    rows.sort(key=lambda row: int(row["seed"]))
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    print(f"{len(rows)} runs; the models of the new ones are in {options.output}", file=sys.stderr)
    if options.json:
        command = f"python -m benchmarks.quality.capacity_map --seeds {len(seeds)}"
        write_results(options.json, {"command": command, **_settings(), "seeds": seeds, "rows": rows})


def rows_of(file: Path | None) -> list[dict[str, Any]]:
    """The rows of a results file whose experiment is the present one."""
    results: dict[str, Any] = files.read_json(file) if file and file.exists() else {"rows": []}
    if results["rows"] and any(results.get(key) != value for key, value in _settings().items()):
        print(f"{file} holds another experiment: all of it runs again", file=sys.stderr)
        return []
    return list(results["rows"])


def _settings() -> dict[str, Any]:
    """What identifies the experiment in a results file: its largest cell."""
    return {"experiment": experiment(0, CAPACITIES[0], TASKS[-1], STEPS[-1])}


def _cells(output: Path, unit: tuple[int, int | str]) -> list[dict[str, Any]]:
    """The rows of every number of tasks, budget and method at one seed and capacity."""
    from benchmarks.quality.seed_models import SeedModels

    seed, capacity = unit
    rows = []
    for count, steps in itertools.product(TASKS, STEPS):
        cell = parse_experiment(experiment(seed, capacity, count, steps), "the map")
        models = SeedModels(Store(output / "store"), cell, base_tasks=list(SIZES))
        for arm in _METHODS:
            views = over_tasks(models.generalist_row(arm, {}, (TEST,))[TEST])
            named = list(zip(("worst", "mean"), views, strict=True))
            rows.append(
                {
                    **{"seed": seed, "rank": capacity, "steps": steps, "tasks": count, "method": arm.name},
                    **{f"{name}_{metric}": view[metric] for metric in _METRICS for name, view in named},
                }
            )
    return rows


def experiment(seed: int, capacity: int | str, count: int, steps: int) -> dict[str, Any]:
    """The configuration of one cell."""
    data = {**synthetic(dict(list(SIZES.items())[:count])), "name": "map", "seed": seed}
    training = {**data["training"], "lora": {"rank": capacity, "alpha": 2}}
    if capacity == "full":
        training |= {"lora": None, "learning_rate": _FULL_RATE}
    else:
        training["lora"]["alpha"] = 2 * int(capacity) ** 0.5  # rsLoRA's scaling, arXiv 2312.03732
    budget = {**data["budget"], "generalist": {"steps": steps}}
    return data | {"training": training, "budget": budget, "methods": ["uniform"]}


if __name__ == "__main__":
    main()
