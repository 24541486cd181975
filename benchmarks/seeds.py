"""Run one experiment over several seeds and compare its models, paired by seed.

    python -m benchmarks.seeds --preset quickstart --seeds 3 --output runs/seeds [--json FILE] [-- OPTIONS]

Runs that are finished in the output folder are not run again. OPTIONS go to `ama run`.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

BASELINE = "uniform"
METRICS = (("worst", "excess"), ("average", "excess"), ("worst", "generation"), ("average", "generation"))


def boards(preset: str, seeds: int, output: Path, further: list[str]) -> list[dict[str, Any]]:
    """The leaderboard of each seed, model -> entry."""
    result = []
    for seed in range(seeds):
        folder = output / f"seed-{seed}"
        if not (folder / "leaderboard.json").exists():
            command = ["run", "--preset", preset, "--set", f"seed={seed}", "--output", str(folder), *further]
            subprocess.run(
                [sys.executable, "-c", "from pipelines.cli import main; main()", *command], check=True
            )
        result.append(
            {entry["model"]: entry for entry in json.loads((folder / "leaderboard.json").read_text())}
        )
    return result


def summarise(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean of each metric over the seeds, and in how many seeds the worst-task excess is below uniform's."""
    rows = []
    for model, first in runs[0].items():
        values = {
            f"{view} {metric}": [run[model][view][metric] for run in runs]
            for view, metric in METRICS
            if metric in first[view]
        }
        excess = [run[model]["worst"]["excess"] for run in runs]
        base = [run[BASELINE]["worst"]["excess"] for run in runs] if BASELINE in runs[0] else []
        rows.append(
            {
                "model": model,
                "family": first["family"],
                "mean": {name: statistics.fmean(some) for name, some in values.items()},
                "each": values,
                "wins over uniform": sum(mine < other for mine, other in zip(excess, base, strict=False)),
            }
        )
    return rows


def main() -> None:
    """Run, print the table, write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="quickstart")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("further", nargs="*")
    options = parser.parse_args()
    rows = summarise(boards(options.preset, options.seeds, options.output, options.further))
    table = Table(
        title=f"{options.preset}, mean of {options.seeds} seeds (each seed's worst excess in brackets)"
    )
    for name in ("model", *rows[0]["mean"], f"below {BASELINE}"):
        table.add_column(name)
    for row in rows:
        cells = [f"{value:.3f}" for value in row["mean"].values()]
        cells[0] += " (" + " ".join(f"{value:.3f}" for value in row["each"]["worst excess"]) + ")"
        table.add_row(row["model"], *cells, f"{row['wins over uniform']}/{options.seeds}")
    Console(width=140).print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
