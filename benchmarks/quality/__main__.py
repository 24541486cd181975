"""Compare AutoMixAlign with its baselines over seeds of a setup (`setups.py`); the arms are in `arms.py`.

    python -m benchmarks.quality --setup NAME --seeds N [--json FILE] [--data FOLDER] [--output runs/quality]

Hyperparameters are chosen by the worst-task excess on the validation splits of seeds of their own; then every
arm runs once on each reported seed and is measured on its test split. What was finished in the output folder
is not done again, so that a sweep can be ended and goes on; what FILE holds already of the same experiment is
kept, but for arms that have changed since. `python -m benchmarks.quality.page` makes the page.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from automixalign.scoring.metrics import over_tasks
from automixalign.storage import files
from benchmarks.quality import sweep
from benchmarks.quality.setups import SETUPS
from benchmarks.quality.statistics import interval
from benchmarks.quality.store import write_results


def main() -> None:
    """Tune, run, print the table, write everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", choices=SETUPS, required=True)
    parser.add_argument("--seeds", type=seeds_of, default="10", help="N for 0 to N - 1, or which: 3,4")
    parser.add_argument("--json", type=Path, help="results; those that it holds already are not made again")
    parser.add_argument("--data", type=Path, help="folder with TASK.jsonl, for the setups on real pairs")
    parser.add_argument("--output", type=Path, default=Path("runs/quality"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="seeds at a time, a process each")
    options = parser.parse_args()
    before = files.read_json(options.json) if options.json and options.json.exists() else None
    with sweep.pool(options.jobs, options.output) as workers:
        found = sweep.run(options.setup, options.seeds, options.data, options.output, workers, before)
    found["command"] = f"python -m benchmarks.quality --setup {options.setup} --seeds " + (
        named(found["seeds"]) + (" --data FOLDER" if options.data else "")
    )
    _show(options.setup, found)
    print(f"everything that was trained lies in {options.output}", file=sys.stderr)
    if options.json:
        write_results(options.json, found)


def seeds_of(text: str) -> list[int]:
    """`3` is 0 to 2; `3,4` and `3,` are what they name."""
    return [int(seed) for seed in text.split(",") if seed] if "," in text else list(range(int(text)))


def named(seeds: list[int]) -> str:
    """As `seeds_of` reads them."""
    if seeds == list(range(len(seeds))):
        return str(len(seeds))
    return ",".join(map(str, seeds)) + ("," if len(seeds) == 1 else "")


def _show(setup: str, found: dict[str, Any]) -> None:
    table = Table(title=f"{setup}, test split, mean of {len(found['seeds'])} seeds")
    for column in ("arm", "worst excess", "95 %", "mean excess", "worst accuracy", "worst pass rate"):
        table.add_column(column)
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for row in found["rows"]:
        by_arm.setdefault(row["arm"], []).append(row["tasks"])
    for arm, runs in by_arm.items():
        views = [over_tasks(tasks) for tasks in runs]
        worst = interval([worst["excess"] for worst, _ in views])
        cells = [f"{worst.mean:.3f}", f"{worst.low:.3f} {worst.high:.3f}"]
        for place, metric in ((1, "excess"), (0, "accuracy"), (0, "pass_rate")):
            values = [view[place][metric] for view in views if metric in view[place]]
            cells.append(f"{sum(values) / len(values):.3f}" if values else "")
        table.add_row(arm, *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
