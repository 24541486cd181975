"""Where the time of a whole local run goes, and what starting it again costs.

    python -m benchmarks.dag [--preset quickstart] [--repeats 3] [--json FILE] [-- OPTIONS]

Three commands in turn: a first run that takes nothing from other runs, the same command again, and a run that
differs in one generalist's eta and may take the rest from the first. OPTIONS go to `ama run`, which is what
`make run` calls. Every moment of a run's wall clock counts once, as the first of these that is true of it:

- `compute`: a step's library function is at work: the step has begun (event `started`) and not ended, and its
  process does not import;
- `imports`: a process of the run imports: the command, the one that goes through the DAG, the fork server, a
  step, the one that sends to MLflow;
- `kfp`: the process that goes through the DAG has been told what to do and lives: compiling, what lies between
  two steps, looking up cached results and verifying them, starting and ending the steps' processes;
- `idle`: the rest: Python's start, the checks of configuration and data, linking the results, what MLflow has
  not yet been told, the leaderboard.

`two` is the part of `compute` with two steps at work: kfp runs two iterations of a loop at a time, and siblings
outside of loops one after another, so what is missing are steps that had no partner. `cores` is the CPU seconds
of all processes of the run per second, of the cores that there are. Imports are found by sampling every process
50 times a second (`sampled/sitecustomize.py`).
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
SEEN = ("wall", *PARTS, "two", "cores")
_SAMPLED = Path(__file__).parent / "sampled"
_TICK = 0.01
_GAP = 2.0
"""Seconds that a process may hold the interpreter within one sample; after more it has ended."""
_CHILD_SUBREAPER = 36


def timed_run(folder: Path, options: list[str], cache: Path) -> dict[str, float]:
    """Seconds of one `ama run` into a folder, divided."""
    log = folder / run_folder.LOGS / EVENTS_FILE
    before = log.stat().st_size if log.exists() else 0
    command = ["run", "--output", str(folder), *options]
    with tempfile.TemporaryDirectory(prefix="ama-samples-") as samples:
        path = os.pathsep.join([str(_SAMPLED), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        cpu, began = _cpu(), time.time()
        subprocess.run(
            [sys.executable, "-c", "from pipelines.cli import main; main()", *command],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "AMA_CACHE": str(cache), "AMA_SAMPLES": samples, "PYTHONPATH": path},
        )
        ended = time.time()
        _reap()
        processes = [_Process(file) for file in Path(samples).iterdir()]
    events = parse_events(log.read_bytes()[before:])
    told = max(file.stat().st_mtime for file in (folder / run_folder.WORK).glob("attempt-*/attempt.json"))
    parts = _divided(began, ended, events, processes, told)
    return {"wall": ended - began, **parts, "cores": (_cpu() - cpu) / (ended - began)}


class _Process:
    """What was sampled of one process."""

    def __init__(self, file: Path) -> None:
        command, *lines = file.read_text(encoding="utf-8").splitlines()
        self.id, self.goes_through_the_dag = int(file.name), " -m pipelines" in command
        samples = [line.split() for line in lines if line.count(" ") == 1]
        self.times = [float(moment) for moment, _ in samples]
        self.states = [state == "1" for _, state in samples]

    def imports(self, moment: float) -> bool:
        """Whether the sample before this moment or the one after it saw an import."""
        at = bisect.bisect(self.times, moment)
        if not 0 < at < len(self.times) or self.times[at] - self.times[at - 1] > _GAP:
            return False
        return self.states[at - 1] or self.states[at]


def _divided(
    began: float, ended: float, events: list[dict[str, Any]], processes: list[_Process], told: float
) -> dict[str, float]:
    """Part -> seconds, and how long two steps were at work."""
    by_id = {process.id: process for process in processes}
    over = max(process.times[-1] for process in processes if process.goes_through_the_dag)
    open_, steps = dict[tuple[str, str], tuple[float, int]](), list[tuple[float, float, int]]()
    for event in events:
        key = event["stage"], event["name"]
        if event["event"] == "started":
            open_[key] = event["time"], event["process"]
        elif event["event"] == "finished":
            since, process = open_.pop(key)
            steps.append((since, event["time"], process))
    parts = dict.fromkeys((*PARTS, "two"), 0.0)
    for tick in range(int((ended - began) / _TICK)):
        moment = began + tick * _TICK
        at_work = [
            process
            for since, until, process in steps
            if since <= moment < until and not (process in by_id and by_id[process].imports(moment))
        ]
        parts["two"] += _TICK * (len(at_work) > 1)
        if at_work:
            part = "compute"
        elif any(process.imports(moment) for process in processes):
            part = "imports"
        else:
            part = "kfp" if told <= moment <= over else "idle"
        parts[part] += _TICK
    return parts


def _cpu() -> float:
    """CPU seconds of all processes below this one that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _reap() -> None:
    """Wait for processes that outlived the one that started them, so that their time counts."""
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def measure(preset: str, repeats: int, options: list[str]) -> dict[str, dict[str, float]]:
    """Medians over the repeats: command -> part -> seconds."""
    ctypes.CDLL(None).prctl(_CHILD_SUBREAPER, 1, 0, 0, 0)
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
        name: {part: statistics.median(run[part] for run in runs) for part in SEEN}
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
