"""Where the time of a whole local run goes, and what starting it again costs.

    python -m benchmarks.dag [--preset quickstart] [--repeats 3] [--json FILE] [-- OPTIONS]

Three commands in turn: a first run that takes nothing from other runs, the same command again, and a run that
differs in one generalist's eta and may take the rest from the first. Of each: the wall clock; `working`, the
time during which at least one step works; `start`, until the first step begins; `between`, when none works; and
`end`, after the last. OPTIONS go to `ama run`.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from automixalign import files, progress, run_folder

PARTS = ("wall", "working", "start", "between", "end")


def timed_run(folder: Path, options: list[str], cache: Path) -> dict[str, float]:
    """Seconds of one `ama run` into a folder, divided."""
    log = folder / run_folder.LOGS / progress.EVENTS
    before = log.stat().st_size if log.exists() else 0
    began = time.time()
    command = ["run", "--output", str(folder), *options]
    subprocess.run(
        [sys.executable, "-c", "from pipelines.cli import main; main()", *command],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "AMA_CACHE": str(cache)},
    )
    ended = time.time()
    events = progress.events_in(log.read_bytes()[before:])
    working, first, last = _covered(events)
    parts = {"wall": ended - began, "working": working, "start": first - began, "end": ended - last}
    return parts | {"between": last - first - working}


def _covered(events: list[dict[str, Any]]) -> tuple[float, float, float]:
    """How long at least one step worked; when the first began and the last ended."""
    at_work = 0
    total, since = 0.0, 0.0
    moments = [(event["time"], event["event"]) for event in events if event["event"] in ("started", "finished")]
    for moment, kind in moments:
        if kind == "started":
            since = moment if at_work == 0 else since
            at_work += 1
        else:
            at_work -= 1
            total += moment - since if at_work == 0 else 0.0
    return total, moments[0][0], max(event["time"] for event in events)


def measure(preset: str, repeats: int, options: list[str]) -> dict[str, dict[str, float]]:
    """Medians over the repeats: command -> part -> seconds."""
    seen: dict[str, list[dict[str, float]]] = {}
    given = ["--preset", preset, *options]
    changed = [*given, "--set", "methods.3.eta=0.04"]
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="ama-dag-") as place:
            first, cache = Path(place) / "first", Path(place) / "cache"
            seen.setdefault("first run", []).append(timed_run(first, given, cache))
            seen.setdefault("the same command again", []).append(timed_run(first, given, cache))
            seen.setdefault("another eta", []).append(timed_run(Path(place) / "other", changed, cache))
    return {
        name: {part: statistics.median(run[part] for run in runs) for part in PARTS}
        for name, runs in seen.items()
    }


def main() -> None:
    """Measure, print the table, write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="quickstart")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("further", nargs="*", metavar="OPTIONS")
    options = parser.parse_args()
    result = measure(options.preset, options.repeats, options.further)
    table = Table("command", *(f"{part}, s" for part in PARTS), "wall / working", "of the first run")
    whole = result["first run"]["wall"]
    for name, parts in result.items():
        ratio, share = parts["wall"] / parts["working"], parts["wall"] / whole
        table.add_row(name, *(f"{parts[part]:.1f}" for part in PARTS), f"{ratio:.2f}", f"{share:.1%}")
    Console(width=120).print(table)
    if options.json:
        files.write_json(options.json, result)


if __name__ == "__main__":
    main()
