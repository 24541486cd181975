"""Where does adaptive mixing pay? AMA-R minus uniform mixing over capacity, horizon and number of tasks.

    python -m benchmarks.quality.capacity_map --seeds N [--json FILE] [--output runs/quality]

The tasks are those of `synthetic-conflict` and their mirror images, the first 3, 5 or 8; the base model knows
the forms of all eight. Seeds that FILE holds already, of the same experiment, are kept. Nothing is tuned: eta
and c are AMA-R's defaults, the learning rate is the setup's, for LoRA of every rank; full fine-tuning takes a
fifth of it.
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from automixalign.config.experiment import parse_experiment
from automixalign.data.store import TEST
from automixalign.scoring.metrics import over_tasks
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
"""Training pairs of the tasks, in the order in which they join."""
TASKS = (3, 5, 8)
CAPACITIES = (1, 4, 16, 64, "full")
"""LoRA's rank, or all parameters."""
STEPS = (100, 300, 800)
_FULL_RATE = 1e-3
_METHODS = (Arm("uniform", "uniform"), Arm("ama-r", "ama-r"))


def main() -> None:
    """Run every cell, write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/quality"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    rows = known(options.json)
    new = [seed for seed in range(options.seeds) if seed not in {row["seed"] for row in rows}]
    with sweep.pool(options.jobs, options.output) as workers:
        units = [(seed, capacity) for seed in new for capacity in CAPACITIES]
        rows += [row for found in workers.map(partial(_cells, options.output), units) for row in found]
    rows.sort(key=lambda row: int(row["seed"]))
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    print(f"{len(rows)} runs; the new ones lie in {options.output}", file=sys.stderr)
    if options.json:
        command = f"python -m benchmarks.quality.capacity_map --seeds {len(seeds)}"
        write_results(options.json, {"command": command, **_settings(), "seeds": seeds, "rows": rows})


def known(file: Path | None) -> list[dict[str, Any]]:
    """The rows of a results file, if there is one and its settings are what they are now."""
    found: dict[str, Any] = files.read_json(file) if file and file.exists() else {"rows": []}
    if found["rows"] and any(found.get(key) != value for key, value in _settings().items()):
        print(f"{file} is of another experiment: made anew", file=sys.stderr)
        return []
    return list(found["rows"])


def _settings() -> dict[str, Any]:
    """What all cells have in common, shown by the largest of them."""
    return {"experiment": experiment(0, CAPACITIES[0], TASKS[-1], STEPS[-1])}


def _cells(output: Path, unit: tuple[int, int | str]) -> list[dict[str, Any]]:
    """All horizons, numbers of tasks and methods at one capacity and seed."""
    from benchmarks.quality.world import World

    seed, capacity = unit
    rows = []
    for count in TASKS:
        for steps in STEPS:
            found = parse_experiment(experiment(seed, capacity, count, steps), "the map")
            world = World(Store(output / "store"), found, base_tasks=list(SIZES))
            for arm in _METHODS:
                measured = world.generalist_row(arm, {}, (TEST,))[TEST]
                worst, mean = over_tasks(measured)
                rows.append(
                    {
                        "seed": seed,
                        "rank": capacity,
                        "steps": steps,
                        "tasks": count,
                        "method": arm.name,
                        "worst_excess": worst["excess"],
                        "mean_excess": mean["excess"],
                        "worst_pass_rate": worst["pass_rate"],
                        "mean_pass_rate": mean["pass_rate"],
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
