"""Measures a training step in two processes of one thread, against one process of one or two threads.

    python -m benchmarks.processes [--size 33M] [--pairs 16] [--steps 5] [--precision bf16] [--json FILE]

Every step has the same pairs, divided among the processes (`training.processes`), which start as in a run.
Seconds are medians over the steps after the first, in the first process.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from automixalign.steps.jobs.launch import start_processes
from automixalign.storage import files
from benchmarks import harness, sizes

WAYS = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes, 1 thread each": (2, 1)}
LONGEST = 512


def work(folder: Path) -> None:
    """Train in one of the processes; the first one writes the seconds of every step."""
    from benchmarks import train_step

    job = files.read_json(folder / "job.json")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    torch.set_num_threads(job["threads"])
    if world > 1:
        torch.distributed.init_process_group("gloo")
    size, pairs = job["size"], job["pairs"]
    rows = sizes.pairs(pairs, LONGEST, sizes.SHAPES[size]["vocab_size"])
    options = {"gradient_checkpointing": False, "ddp_backend": "gloo" if world > 1 else None}
    args = train_step.config(folder, pairs // world, job["steps"] + 1, job["precision"] == "bf16", **options)
    trainer = train_step.ours(sizes.model(size), rows, args, "ama-r", folder)
    watch = train_step.Stopwatch()
    watch.attach(trainer)
    trainer.train()
    if os.environ.get("RANK", "0") == "0":
        files.write_json(folder / "seconds.json", watch.steps)
    if world > 1:
        torch.distributed.destroy_process_group()


def measure(processes: int, threads: int, job: dict[str, Any]) -> list[float]:
    """The seconds of every step."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files.write_json(folder / "job.json", {**job, "threads": threads})
        command = ["--module", "benchmarks.processes", "--work", scratch]
        if processes > 1:
            torch.set_num_threads(processes * threads)
            start_processes(processes, command)
        else:
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            subprocess.run([sys.executable, "-m", *command[1:]], check=True, env=environment)
        return list(files.read_json(folder / "seconds.json"))


def main() -> None:
    """Measure every way, print the table, and write it as JSON."""
    parser = harness.parser(__doc__)
    parser.add_argument("--size", choices=sizes.SHAPES, default="33M")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work)
        return
    job = {key: getattr(options, key) for key in ("size", "pairs", "steps", "precision")}
    result = {way: measure(processes, threads, job) for way, (processes, threads) in WAYS.items()}
    seconds = {way: statistics.median(steps[1:]) for way, steps in result.items()}
    alone = next(iter(seconds.values()))
    title = f"AMA-R, {options.size} parameters, {options.pairs} pairs a step, {options.precision}"
    rows = [[way, f"{value:.3f}", f"{alone / value:.2f}"] for way, value in seconds.items()]
    harness.show(title, ["", "s / step", "x one process, one thread"], rows)
    harness.write(options, {**job, "seconds": result})


if __name__ == "__main__":
    main()
