"""What the defaults are settled from: eta and c of AMA-R, the weight of the NLL term, and clipping.

    python -m benchmarks.quality.defaults --setup NAME [--json FILE] [--output runs/quality]

On the tuning seeds of a setup, which no result is reported of: a grid of eta and c, and the NLL weight with
specialists of its own, since it holds for every training alike.
"""

import argparse
import os
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from automixalign.data.store import TEST
from automixalign.scoring.metrics import over_tasks
from benchmarks.quality import sweep
from benchmarks.quality.arms import Arm, Options
from benchmarks.quality.setups import SETUPS
from benchmarks.quality.store import write_results

ETAS = (0.003, 0.01, 0.03, 0.1)
SMOOTHINGS = (0.05, 0.1, 0.3)
NLL_WEIGHTS = (0.0, 0.1, 0.2, 0.5)
_RATE = {"learning_rate": 2.0}
METRICS = (("worst", "excess"), ("average", "excess"), ("worst", "pass_rate"), ("average", "pass_rate"))


def main() -> None:
    """Run the grids, print the tables, write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", choices=["synthetic-conflict", "reasoning-gym"], required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/quality"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    seeds = SETUPS[options.setup].tuning_seeds
    with sweep.pool(options.jobs, options.output) as workers:
        found = list(workers.map(partial(_grids, options.setup, options.output), seeds))
    rows = [
        {
            **cells[0],
            "seeds": len(cells),
            **{key: fmean(cell[key] for cell in cells) for key in cells[0]["means"]},
        }
        for cells in zip(*found, strict=True)
    ]
    rows = [{key: value for key, value in row.items() if key != "means"} for row in rows]
    table = Table(title=f"{options.setup}, {len(seeds)} tuning seeds, test split")
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=140).print(table)
    if options.json:
        command = f"python -m benchmarks.quality.defaults --setup {options.setup}"
        write_results(options.json, {"command": command, "setup": options.setup, "rows": rows})


def _grids(setup: str, output: Path, seed: int) -> list[dict[str, Any]]:
    ama = Arm("ama-r", "ama-r")
    rows = [
        _row(setup, output, seed, ama, {**_RATE, "eta": eta, "c": c}, {"eta": eta, "c": c})
        for eta in ETAS
        for c in SMOOTHINGS
    ]
    for weight in NLL_WEIGHTS:
        arms = (Arm("uniform", "uniform"), Arm("uniform-clip", "uniform-clip"), ama)
        rows += [
            _row(setup, output, seed, arm, _RATE, {"nll_weight": weight}, nll_weight=weight) for arm in arms
        ]
    return rows


def _row(
    setup: str, output: Path, seed: int, arm: Arm, options: Options, told: Options, **training: float
) -> dict[str, Any]:
    with sweep.world(SETUPS[setup], seed, None, output, **training) as world:
        worst, average = over_tasks(world.generalist_row(arm, options, (TEST,))[TEST])
    views = {"worst": worst, "average": average}
    means = {f"{view} {metric}": views[view][metric] for view, metric in METRICS}
    return {"arm": arm.name, "options": told, "means": list(means), **means}


if __name__ == "__main__":
    main()
