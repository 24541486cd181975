"""A made-up finished run, as the steps of the DAG would have left it, for the tests of the report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from automixalign.config.experiment import ComparisonSettings, Experiment, model_names, parse_experiment
from automixalign.config.file import dump_yaml
from automixalign.config.training import specialist_name
from automixalign.report.collect import RunResults
from automixalign.report.compare import ReportPaths, compare
from automixalign.scoring import caches
from automixalign.scoring.caches import SUMMARY
from automixalign.storage import files

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>\u2028&amp;"
"""A text that would run where it was taken for HTML."""

EVERYWHERE = (
    f"{HOSTILE}<!--<script>]]>\u2029<svg onload='window.hacked = 3'>"
    "<iframe srcdoc='<script>top.hacked = 4</script>'>"
    "<a href='javascript:window.hacked = 5'>x</a><base href='http://127.0.0.1:9/'>"
    "' onmouseover='window.hacked = 6'"
    '" autofocus onfocus="window.hacked = 7" $title ${script} {{7*7}} `code` \x1b[31m\u202e'
)
"""The same and more, for the page's every text: it must not rely on what the schema lets into a name."""

TASKS = ("alpha", "beta")
TEST_PAIRS = {"alpha": 20, "beta": 10}
STEPS = 40
LEVEL = {"reference": 0.7, "standard": 0.4, "uniform": 0.2, "ama-r": 0.15, "linear": 0.5}
"""Mean test loss of each model; a specialist's is .1 on its own task."""


def experiment(seed: int = 0, **changes: Any) -> Experiment:
    """A checked configuration of two tasks, three methods and a merge."""
    data = {
        "name": "made-up",
        "seed": seed,
        "base_model": HOSTILE,
        "tasks": [
            {"name": "alpha", "source": HOSTILE, "verifier": "exact"},
            {"name": "beta", "source": "beta.jsonl", "label_noise": 0.25},
        ],
        "training": {"batch_size": 4, "learning_rate": 0.001},
        "budget": {"specialist": {"steps": STEPS}, "generalist": {"steps": STEPS}},
        "methods": ["standard", "uniform", "ama-r"],
        "merges": ["linear"],
    }
    return parse_experiment(data | changes, "test")


def write_run(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A run folder with everything the report is made of, and the report.

    Args:
        changes: keys of the configuration.
    """
    made = experiment(seed, **changes)
    generator = np.random.default_rng(seed)
    files.write_text(folder / "config.yaml", dump_yaml(made))
    evaluations = [_evaluation(folder, name, generator) for name in model_names(made)]
    trained = [*map(specialist_name, TASKS), *(method.name for method in made.methods)]
    trajectories = {name: _trajectory(folder, name, generator) for name in trained}
    files.write_json(
        folder / "data" / "card.json", {"tasks": [_card(task.name, task.source) for task in made.tasks]}
    )
    losses = [_losses(folder, task) for task in TASKS]
    cost = {"steps": STEPS, "pairs": 4 * STEPS, "tokens": 1234, "seconds": 1.5, "run_path": "not a cost"}
    results = RunResults(
        evaluations=evaluations,
        trajectories=trajectories,
        costs=dict.fromkeys(trained, cost),
        data=folder / "data",
        losses=losses,
    )
    settings = ComparisonSettings(seed=seed, code="0123456789abcdef", experiment=made)
    compare(settings, results, report_paths(folder))
    return folder


def report_paths(folder: Path) -> ReportPaths:
    """Where the report of a run folder belongs."""
    return ReportPaths(
        leaderboard=folder / "leaderboard.json",
        markdown=folder / "leaderboard.md",
        plots=folder / "plots",
        page=folder / "report" / "index.html",
        facts=folder / "report" / "data.json",
    )


def _evaluation(folder: Path, name: str, generator: np.random.Generator) -> Path:
    place = folder / "evaluations" / name
    tasks = {}
    for task, count in TEST_PAIRS.items():
        level = 0.1 if name == specialist_name(task) else LEVEL.get(name, 0.9)
        losses = level * generator.uniform(0.5, 1.5, count)
        ids = [f"{task}-{number}" for number in range(count)]
        files.write_table(place / f"{task}.parquet", pa.table({"pair_id": ids, "loss": losses}))
        tasks[task] = {"loss": float(losses.mean()), "accuracy": 1 - level / 2, "margin": 1 / level}
    tasks["alpha"]["pass_rate"] = 1 - tasks["alpha"]["loss"] / 2
    families = {
        "reference": "reference",
        "linear": "merge",
        **{specialist_name(task): "specialist" for task in TASKS},
    }
    summary = {"model": name, "family": families.get(name, "generalist"), "tasks": tasks}
    files.write_json(place / SUMMARY, summary)
    return place


def _trajectory(folder: Path, name: str, generator: np.random.Generator) -> Path:
    alone = [task for task in TASKS if specialist_name(task) == name]
    tasks = alone or TASKS
    metrics = ["loss", "margin", "accuracy"] + ([] if alone else ["difference", "excess", "clipped"])
    rows = []
    for step in range(1, STEPS + 1):
        weights = {task: 1 / len(tasks) for task in tasks}
        if name == "ama-r":
            weights = {"alpha": 0.5 + step / 100, "beta": 0.5 - step / 100}
        row: dict[str, Any] = {
            "step": step,
            "weights": weights,
            "pairs": {task: 4 // len(tasks) for task in tasks},
        }
        rows.append(row | {metric: {task: float(generator.uniform()) for task in tasks} for metric in metrics})
    path = folder / "trajectories" / f"{name}.jsonl"
    files.write_jsonl(path, rows)
    return path


def _card(task: str, source: str) -> dict[str, Any]:
    length = {"mean": 5.5, "max": 9}
    return {
        "name": task,
        "source": source,
        "rows": {"read": 60, "duplicate": 3, "cut": 2},
        "pairs": {"train": 8, "validation": 4, "test": TEST_PAIRS[task]},
        "tokens": {"prompt": length, "chosen": length, "rejected": length},
        "swapped": 2 if task == "beta" else 0,
    }


def _losses(folder: Path, task: str) -> Path:
    """Of the 8 training pairs of beta, its specialist ranks two the other way."""
    place = folder / "specialist_losses" / task
    losses = [0.1] * 6 + ([2.0, 1.0] if task == "beta" else [0.1, 0.1])
    files.write_table(
        place / "train.parquet", pa.table({"pair_id": [str(i) for i in range(8)], "loss": losses})
    )
    gap = {"alpha": 0.25, "beta": -0.3}[task]
    manifest = {"task": task, "mean_loss": {"train": 0.1, "test": 0.1 + gap}, "gap": gap, "cross_fit": False}
    files.write_json(place / caches.MANIFEST, manifest)
    return place


def hostile_facts(facts: Any) -> Any:
    """The facts of a run's page with a hostile text in every name, key that is a name, and free text."""
    names = {task: task + EVERYWHERE for task in TASKS}
    names |= {specialist_name(task): specialist_name(names[task]) for task in TASKS}
    names |= {model: model + EVERYWHERE for model in LEVEL}
    structure = {"kind", "family", "metrics"}

    def spoiled(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {names.get(name, name): spoiled(inner, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [spoiled(inner, key) for inner in value]
        if isinstance(value, str) and key not in structure and value not in ("lower", "higher"):
            return names.get(value, value + EVERYWHERE)
        return value

    return spoiled(facts)


def facts_of(page: Path) -> Any:
    """The JSON that a page holds."""
    text = page.read_text(encoding="utf-8")
    start = text.index('id="data">') + len('id="data">')
    return json.loads(text[start : text.index("</script>", start)])
