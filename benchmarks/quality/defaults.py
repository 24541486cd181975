"""Measures what the defaults are based on: eta and c of AMA-R, and the weight of the NLL term.

    python -m benchmarks.quality.defaults --setup NAME [--json FILE] [--output runs/quality]

The runs use the tuning seeds of a setup, of which no other result is reported. The NLL weight applies to every
training, so each weight has specialists of its own.
"""

import itertools
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from automixalign.data.store import TEST
from automixalign.scoring.metrics.registry import over_tasks
from benchmarks import harness
from benchmarks.quality import sweep
from benchmarks.quality.arms import Arm, Options
from benchmarks.quality.setups import SETUPS
from benchmarks.quality.store import write_results

ETAS = (0.003, 0.01, 0.03, 0.1)
SMOOTHINGS = (0.05, 0.1, 0.3)
NLL_WEIGHTS = (0.0, 0.1, 0.2, 0.5)
_RATE = {"learning_rate": 2.0}
_METRICS = ("gap", "excess", "pass_rate")


def main() -> None:
    """Run the grids, print their means, and write them as JSON."""
    parser = sweep.parser(__doc__)
    parser.add_argument("--setup", choices=["synthetic-conflict", "reasoning-gym"], required=True)
    options = parser.parse_args()
    seeds = SETUPS[options.setup].tuning_seeds
    with sweep.pool(options.jobs, options.output) as workers:
        by_seed = list(workers.map(partial(_grids, options.setup, options.output), seeds))
    rows = [
        {
            **{key: runs[0][key] for key in ("arm", "options")},
            "seeds": len(runs),
            **{view: fmean(run["means"][view] for run in runs) for view in runs[0]["means"]},
        }
        for runs in zip(*by_seed, strict=True)
    ]
    cells = [[f"{cell:.3f}" if isinstance(cell, float) else cell for cell in row.values()] for row in rows]
    harness.show(f"{options.setup}, {len(seeds)} tuning seeds, test split", list(rows[0]), cells)
    if options.json:
        command = f"python -m benchmarks.quality.defaults --setup {options.setup}"
        write_results(options.json, {"command": command, "setup": options.setup, "rows": rows})


def _grids(setup: str, output: Path, seed: int) -> list[dict[str, Any]]:
    ama = Arm("ama-r", "ama-r")
    arms = (Arm("uniform", "uniform"), Arm("uniform-clip", "uniform-clip"), ama)
    grid = itertools.product(ETAS, SMOOTHINGS)
    runs: list[tuple[Arm, Options, dict[str, float]]] = [(ama, {"eta": eta, "c": c}, {}) for eta, c in grid]
    runs += [(arm, {}, {"nll_weight": weight}) for weight in NLL_WEIGHTS for arm in arms]
    rows = []
    for arm, options, training in runs:
        with sweep.seed_models(SETUPS[setup], seed, None, output, **training) as models:
            row = models.generalist_row(arm, {**_RATE, **options}, (TEST,))
        views = list(zip(("worst", "average"), over_tasks(row[TEST]), strict=True))
        means = {f"{name} {metric}": view[metric] for metric in _METRICS for name, view in views}
        rows.append({"arm": arm.name, "options": {**options, **training}, "means": means})
    return rows


if __name__ == "__main__":
    main()
