"""Settle a setup's data, steps and learning rate: do its specialists learn their own task?

    python -m benchmarks.quality.pilot --setup NAME --rates 5e-4 1e-3 --steps 40 [--data FOLDER]

prints what each specialist gains over the reference on held-out pairs, on the tuning seeds alone.
"""

import argparse
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from automixalign.data.split import VALIDATION
from benchmarks.quality import sweep
from benchmarks.quality.setups import SETUPS, TUNING_SEEDS


def main() -> None:
    """Train the specialists at each rate, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", choices=SETUPS, required=True)
    parser.add_argument("--rates", type=float, nargs="+", required=True)
    parser.add_argument("--steps", type=int, nargs="+", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=TUNING_SEEDS)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/quality"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    table = Table(title=f"{options.setup}: specialists on their own task's validation split")
    for column in (
        "seed",
        "task",
        "rate",
        "steps",
        "loss in training, last steps",
        "loss",
        "accuracy",
        "margin",
    ):
        table.add_column(column)
    with sweep.pool(options.jobs, options.output) as workers:
        waiting = [
            workers.submit(_gain, options.setup, options.data, options.output, seed, rate, steps)
            for seed in options.seeds
            for rate in options.rates
            for steps in options.steps
        ]
        for rows in waiting:
            for row in rows.result():
                table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row))
    Console(width=120).print(table)


def _gain(setup: str, data: Path | None, output: Path, seed: int, rate: float, steps: int) -> list[list[Any]]:
    from automixalign.storage import files

    rows = []
    with sweep.world(SETUPS[setup], seed, data, output, steps, learning_rate=rate) as world:
        for task in world.tasks:
            scores = world.specialist_scores(task, VALIDATION)
            measured = files.read_json(scores / "summary.json")["tasks"][task]
            log = files.read_jsonl(world.specialist(task) / "trajectory.jsonl")
            last = [row["loss"][task] for row in log[-len(log) // 4 :]]
            cells = [sum(last) / len(last), *(measured[key] for key in ("loss", "accuracy", "margin"))]
            rows.append([seed, task, rate, steps, *cells])
    return rows


if __name__ == "__main__":
    main()
