"""Compares AutoMixAlign with its baselines over the seeds of a setup (`setups.py`, `arms.py`).

    python -m benchmarks.quality --setup NAME --seeds N [--json FILE] [--data FOLDER] [--output runs/quality]

Options are tuned for the lowest worst excess on the validation splits of separate seeds. Then every arm runs
once on each reported seed and is measured on its test split. A sweep that was ended continues from its output
folder. `--json FILE` keeps the results of FILE, except those of arms that have changed since.
`python -m benchmarks.quality.page` makes the page.
"""

import sys
from pathlib import Path
from typing import Any

from automixalign.storage import files
from benchmarks import harness
from benchmarks.quality import sweep, tables
from benchmarks.quality.results import WORST_EXCESS, WORST_GAP, Measure, SetupResults
from benchmarks.quality.setups import SETUPS
from benchmarks.quality.store import write_results

_FURTHER = (Measure("accuracy", "worst"), Measure("pass_rate", "worst"))


def main() -> None:
    """Tune, run, print a table, and write the results as JSON."""
    parser = sweep.parser(__doc__)
    parser.add_argument("--setup", choices=SETUPS, required=True)
    parser.add_argument("--seeds", type=parse_seeds, default="10", help="N for 0 to N - 1, or a list: 3,4")
    parser.add_argument("--data", type=Path, help="folder with TASK.jsonl, for the setups on SmolLM2")
    options = parser.parse_args()
    before = files.read_json(options.json) if options.json and options.json.exists() else None
    with sweep.pool(options.jobs, options.output) as workers:
        of_setup = sweep.Sweep(options.setup, options.data, options.output)
        results = sweep.run(of_setup, options.seeds, workers, before)
    data = " --data FOLDER" if options.data else ""
    seeds = format_seeds(results["seeds"])
    results["command"] = f"python -m benchmarks.quality --setup {options.setup} --seeds {seeds}{data}"
    _show(results)
    print(f"all models are in {options.output}", file=sys.stderr)
    if options.json:
        write_results(options.json, results)


def parse_seeds(text: str) -> list[int]:
    """`3` is 0 to 2; `3,4` and `3,` are lists."""
    return [int(seed) for seed in text.split(",") if seed] if "," in text else list(range(int(text)))


def format_seeds(seeds: list[int]) -> str:
    """The text that `parse_seeds` reads as these seeds."""
    if seeds == list(range(len(seeds))):
        return str(len(seeds))
    return ",".join(map(str, seeds)) + ("," if len(seeds) == 1 else "")


def _show(results: dict[str, Any]) -> None:
    setup = SetupResults.of(results, "the results")
    rows = [
        [arm, *(tables.mean_and_interval(setup, arm, measure) for measure in (WORST_GAP, WORST_EXCESS))]
        + [tables.number(setup.mean(arm, measure)) for measure in _FURTHER]
        for arm in setup.arms()
    ]
    title = f"{setup.name}, test split, mean of {tables.seeds(len(setup.measured_seeds))}"
    further = [f"worst {measure.metric.replace('_', ' ')}" for measure in _FURTHER]
    harness.show(title, ["arm", "worst gap [95 %]", "worst excess [95 %]", *further], rows)


if __name__ == "__main__":
    main()
