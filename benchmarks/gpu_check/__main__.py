"""Measures on one GPU, in 15 minutes, what no CPU can show. It needs no network.

    python -m benchmarks.gpu_check [--minutes 15] [--output gpu_check.json] [--only CHECK ...] [--small]

The models are Llamas with random weights: one of 1.2 B parameters, and one of 135 M where only exactness
counts. The pairs are random, too. Every check runs in a process of its own, with a share of the time. The
docstrings of `benchmarks/gpu_check` explain the checks. A row is a number, a note why there is none, or an
error.

The goals come last: met, missed or unmeasured. The exit code is 1 if a check had an error. A missed goal is no
error. `--small` runs tiny models on any machine, in one process without limits of time. It shows that the
checks run; its numbers mean nothing. This is the default without CUDA.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from automixalign.storage import files
from benchmarks import harness
from benchmarks.gpu_check.checks import CHECKS, judge
from benchmarks.gpu_check.run import run_all, run_check, run_here
from benchmarks.gpu_check.setting import FULL, SMALL


def show(rows: list[dict[str, Any]], goals: list[dict[str, Any]], small: bool) -> None:
    """Print the tables."""
    cells = []
    for row in rows:
        number = "" if row["value"] is None else f"{row['value']:,.4g}"
        last = f"ERROR {row['error']}" if row["error"] else row["note"]
        cells.append((row["check"], row["what"], number, row["unit"], last))
    caution = " (tiny models: the numbers mean nothing)" if small else ""
    harness.show(f"Measured{caution}", ("check", "what", "value", "unit", "note"), cells)
    cells = []
    for goal in goals:
        value = "" if goal["value"] is None else f"{goal['value']:.4g}"
        cells.append(
            (goal["benchmark"], goal["what"], f"{goal['sign']} {goal['limit']:g}", value, goal["verdict"])
        )
    harness.show(f"Goals{caution}", ("check", "what", "goal", "value", ""), cells)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks, print the tables, and write them as JSON; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--output", type=Path, default=Path("gpu_check.json"))
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS), metavar="CHECK")
    parser.add_argument("--small", action="store_true", help="tiny models, on any machine")
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    small = options.small or not torch.cuda.is_available()
    if options.rows:
        (check,) = options.only
        setting = SMALL if small else replace(FULL, deadline=time.monotonic() + 60 * options.minutes)
        with options.rows.open("a", encoding="utf-8") as out:
            for row in run_check(check, setting):
                print(json.dumps(row), file=out, flush=True)
        return 0
    if small and not options.small:
        print("No CUDA here: tiny models run on the CPU. Their numbers mean nothing.", file=sys.stderr)
    rows = run_here(options.only, SMALL) if small else run_all(options.only, options.minutes)
    goals = judge(rows)
    show(rows, goals, small)
    files.write_json(options.output, {"small": small, "rows": rows, "goals": goals})
    return int(any(row["error"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
