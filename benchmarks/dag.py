"""Measure where the time of a whole local run goes, and the cost of running it again.

    python -m benchmarks.dag [--preset quickstart] [--repeats 3] [--json FILE] [-- OPTIONS]

It runs three commands: a first run that uses no results of other runs, the same command again, and a run with
another eta for one generalist, which can use the other results of the first. OPTIONS go to `ama run`.

Each moment of a run's wall clock belongs to the first of these parts that fits:

- `compute`: a stage's library function works: between the events `started` and `finished`, without imports;
- `imports`: a process of the run imports: the command, the process that runs the DAG, the fork server, a stage,
  or the process that sends to MLflow;
- `kfp`: the process that runs the DAG is alive: it compiles, looks up and verifies cached results, and starts
  and ends the stages' processes;
- `idle`: the rest: Python's start, the checks of configuration and data, links to the results, the last records
  for MLflow, and the leaderboard.

`two` is the part of `compute` with two stages at work: kfp runs two iterations of a loop at a time, and other
stages one after another. `cores` is the CPU seconds of all processes per second. `sampled/sitecustomize.py`
detects imports: it samples every process 50 times a second.
"""

import argparse
import bisect
import ctypes
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from automixalign.report import run_folder
from automixalign.steps.events import EVENTS_FILE, parse_events
from automixalign.storage import files

PARTS = ("compute", "imports", "kfp", "idle")
MEASURES = ("wall", *PARTS, "two", "cores")
_SAMPLED = Path(__file__).parent / "sampled"
_TICK_SECONDS = 0.01
_GAP_SECONDS = 2.0
"""A process without a sample for longer than this has end."""
_CHILD_SUBREAPER = 36


def timed_run(folder: Path, options: list[str], cache: Path) -> dict[str, float]:
    """Seconds of one `ama run` into a folder, by part."""
    log = folder / run_folder.LOGS / EVENTS_FILE
    before = log.stat().st_size if log.exists() else 0
    command = ["run", "--output", str(folder), *options]
    with tempfile.TemporaryDirectory(prefix="ama-samples-") as samples:
        path = os.pathsep.join([str(_SAMPLED), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        cpu, start = _cpu(), time.time()
        subprocess.run(
            [sys.executable, "-c", "from pipelines.cli import main; main()", *command],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "AMA_CACHE": str(cache), "AMA_SAMPLES": samples, "PYTHONPATH": path},
        )
        end = time.time()
        _reap()
        processes = [_Process(file) for file in Path(samples).iterdir()]
    events = parse_events(log.read_bytes()[before:])
    dag_start = max(file.stat().st_mtime for file in (folder / run_folder.WORK).glob("attempt-*/attempt.json"))
    parts = _parts(start, end, events, processes, dag_start)
    return {"wall": end - start, **parts, "cores": (_cpu() - cpu) / (end - start)}


class _Process:
    """The samples of one process."""

    def __init__(self, file: Path) -> None:
        command, *lines = file.read_text(encoding="utf-8").splitlines()
        self.id, self.runs_the_dag = int(file.name), " -m pipelines" in command
        samples = [line.split() for line in lines if line.count(" ") == 1]
        self.times = [float(moment) for moment, _ in samples]
        self.states = [state == "1" for _, state in samples]

    def imports(self, moment: float) -> bool:
        """Whether the sample before this moment or the one after it saw an import."""
        at = bisect.bisect(self.times, moment)
        if not 0 < at < len(self.times) or self.times[at] - self.times[at - 1] > _GAP_SECONDS:
            return False
        return self.states[at - 1] or self.states[at]


def _parts(
    start: float, end: float, events: list[dict[str, Any]], processes: list[_Process], dag_start: float
) -> dict[str, float]:
    """Part -> seconds; `two` is the time with two stages at work."""
    by_id = {process.id: process for process in processes}
    dag_end = max(process.times[-1] for process in processes if process.runs_the_dag)
    open_, stages = dict[tuple[str, str], tuple[float, int]](), list[tuple[float, float, int]]()
    for event in events:
        key = event["stage"], event["name"]
        if event["event"] == "started":
            open_[key] = event["time"], event["process"]
        elif event["event"] == "finished":
            since, process = open_.pop(key)
            stages.append((since, event["time"], process))
    parts = dict.fromkeys((*PARTS, "two"), 0.0)
    for tick in range(int((end - start) / _TICK_SECONDS)):
        moment = start + tick * _TICK_SECONDS
        working = [
            process
            for since, until, process in stages
            if since <= moment < until and not (process in by_id and by_id[process].imports(moment))
        ]
        parts["two"] += _TICK_SECONDS * (len(working) > 1)
        if working:
            part = "compute"
        elif any(process.imports(moment) for process in processes):
            part = "imports"
        else:
            part = "kfp" if dag_start <= moment <= dag_end else "idle"
        parts[part] += _TICK_SECONDS
    return parts


def _cpu() -> float:
    """CPU seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _reap() -> None:
    """Wait for processes that outlive their parent, so that their CPU time counts."""
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def measure(preset: str, repeats: int, options: list[str]) -> dict[str, dict[str, float]]:
    """Medians over the repeats: command -> part -> seconds."""
    ctypes.CDLL(None).prctl(_CHILD_SUBREAPER, 1, 0, 0, 0)
    timings: dict[str, list[dict[str, float]]] = {}
    options_of_first = ["--preset", preset, *options]
    changed = [*options_of_first, "--set", "methods.3.eta=0.04"]
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="ama-dag-") as folder:
            first, cache = Path(folder) / "first", Path(folder) / "cache"
            timings.setdefault("first run", []).append(timed_run(first, options_of_first, cache))
            timings.setdefault("the same command again", []).append(timed_run(first, options_of_first, cache))
            timings.setdefault("another eta", []).append(timed_run(Path(folder) / "other", changed, cache))
    return {
        name: {part: statistics.median(run[part] for run in runs) for part in MEASURES}
        for name, runs in timings.items()
    }


def main() -> None:
    """Measure, print a table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="quickstart")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("further", nargs="*", metavar="OPTIONS")
    options = parser.parse_args()
    result = measure(options.preset, options.repeats, options.further)
    cores = len(os.sched_getaffinity(0))
    heads = [f"{part}, s" for part in ("wall", *PARTS, "two")]
    table = Table("command", *heads, f"cores of {cores}", "wall / compute", "of the first run")
    whole = result["first run"]["wall"]
    for name, parts in result.items():
        seconds = [f"{parts[part]:.1f}" for part in ("wall", *PARTS, "two")]
        ratio = f"{parts['wall'] / parts['compute']:.2f}" if parts["compute"] >= 1 else ""
        table.add_row(name, *seconds, f"{parts['cores']:.2f}", ratio, f"{parts['wall'] / whole:.1%}")
    Console(width=140).print(table)
    if options.json:
        files.write_json(options.json, result)


if __name__ == "__main__":
    main()
