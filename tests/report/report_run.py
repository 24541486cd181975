"""A made-up run folder of a finished run, for the tests of the report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from automixalign.config.experiment import ComparisonSettings, Experiment, model_names, parse_experiment
from automixalign.config.file import dump_yaml
from automixalign.config.training import specialist_name
from automixalign.data.store import split_path, split_schema
from automixalign.report.compare import ReportPaths, compare
from automixalign.report.facts.collect import RunResults
from automixalign.scoring import caches
from automixalign.scoring.benchmarks.results import RESULTS
from automixalign.scoring.caches import GENERATIONS, SUMMARY
from automixalign.storage import files

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>\u2028&amp;"
"""A text that would run if a page inserted it as HTML."""

EVERYWHERE = (
    f"{HOSTILE}<!--<script>]]>\u2029<svg onload='window.hacked = 3'>"
    "<iframe srcdoc='<script>top.hacked = 4</script>'>"
    "<a href='javascript:window.hacked = 5'>x</a><base href='http://127.0.0.1:9/'>"
    "' onmouseover='window.hacked = 6'"
    '" autofocus onfocus="window.hacked = 7" $title ${script} {{7*7}} `code` \x1b[31m\u202e'
)
"""More such texts, for every text of the page: the page must not rely on the schema to refuse them."""

TASKS = ("alpha", "beta")
TEST_PAIRS = {"alpha": 20, "beta": 10}
STEPS = 40
LEVEL = {"reference": 0.7, "standard": 0.4, "uniform": 0.2, "ama-r": 0.15, "linear": 0.5}
"""Mean test loss of each model; 0.1 for a specialist on its own task."""

TUNING = {
    "tries": [
        {
            "weights": {"alpha": 1.0, "beta": beta},
            "gaps": {"alpha": 0.1, "beta": gap},
            "worst_gap": max(0.1, gap),
        }
        for beta, gap in ((1.0, 0.3), (0.5, 0.4), (2.0, 0.05))
    ],
    "scored_pairs": 30,
    "seconds": 1.5,
}
"""The search of the weights of a tuned merge."""


def experiment(seed: int = 0, **changes: Any) -> Experiment:
    """A checked configuration of two tasks, three methods and a merge."""
    data = {
        "name": "made-up",
        "seed": seed,
        "base_model": {"source": HOSTILE, "revision": "c" * 40},
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
    """Write a run folder with a report. `changes` are keys of the configuration."""
    checked = experiment(seed, **changes)
    generator = np.random.default_rng(seed)
    files.write_text(folder / "config.yaml", dump_yaml(checked))
    trained = [*map(specialist_name, TASKS), *(method.name for method in checked.methods)]
    cards = [_card(task.name, task.source_names) for task in checked.tasks]
    files.write_json(folder / "data" / "card.json", {"long_answers": "drop", "tasks": cards, "warnings": []})
    for task in TASKS:
        _test_split(folder / "data", task)
    cost = {"steps": STEPS, "pairs": 4 * STEPS, "tokens": 1234, "seconds": 1.5, "machine": HOSTILE}
    cost["run_path"] = "not a cost"
    if checked.training.validate_every:
        cost |= {"kept_step": STEPS // 2, "validation_seconds": 0.25}
    results = RunResults(
        evaluations=[_evaluation(folder, name, generator) for name in model_names(checked)],
        trajectories={
            name: _trajectory(folder, name, generator, checked.training.validate_every) for name in trained
        },
        costs=dict.fromkeys(trained, cost),
        data=folder / "data",
        losses=[_losses(folder, task) for task in TASKS],
        tunings={merge.name: TUNING for merge in checked.merges if merge.is_tuned},
        benchmarks=[_solved(folder, name) for name in ("reference", "uniform")] if checked.benchmarks else [],
    )
    settings = ComparisonSettings(seed=seed, code="0123456789abcdef", experiment=checked)
    compare(settings, results, report_paths(folder))
    return folder


def _solved(folder: Path, name: str) -> Path:
    """A folder as `benchmark` writes it."""
    solved = {
        "toxigen": {"metrics": {"acc": 0.75, "acc_stderr": 0.125, "acc_norm": 0.5}},
        "gsm8k": {"metrics": {"exact_match,strict-match": 0.25}},
    }
    files.write_json(folder / "benchmarks" / name / RESULTS, {"model": name, "benchmarks": solved})
    return folder / "benchmarks" / name


def report_paths(folder: Path) -> ReportPaths:
    """The paths of the report in a run folder."""
    return ReportPaths(
        leaderboard=folder / "leaderboard.json",
        markdown=folder / "leaderboard.md",
        plots=folder / "plots",
        page=folder / "report" / "index.html",
        facts=folder / "report" / "data.json",
    )


def _evaluation(folder: Path, name: str, generator: np.random.Generator) -> Path:
    output, tasks = folder / "evaluations" / name, {}
    for task, count in TEST_PAIRS.items():
        level = 0.1 if name == specialist_name(task) else LEVEL.get(name, 0.9)
        losses = level * generator.uniform(0.5, 1.5, count)
        drift = np.full(count, -1.5 if task == "alpha" else 0.5)
        margins = 0 * losses if name == "reference" else 1.5 - 3 * losses
        write_scores(output / f"{task}.parquet", task, losses, margins, drift)
        tasks[task] = {"loss": float(losses.mean())}
    files.write_jsonl(output / GENERATIONS, _answers(name))
    families = {"reference": "reference", "linear": "merge"}
    families |= {specialist_name(task): "specialist" for task in TASKS}
    summary = {"model": name, "family": families.get(name, "generalist"), "tasks": tasks}
    files.write_json(output / SUMMARY, summary)
    return output


def write_scores(
    path: Path, task: str, losses: npt.ArrayLike, margins: npt.ArrayLike, drift: npt.ArrayLike = 0.0
) -> None:
    """Write the scores of a task as `evaluate` does. Each pair has a prompt of its own."""
    values = {"loss": np.asarray(losses, float), "margin": np.asarray(margins, float)}
    count = len(values["loss"])
    ids = [f"{task}-{number}" for number in range(count)]
    columns = {**values, "chosen_log_ratio": np.broadcast_to(drift, count), "prompt": range(count)}
    files.write_table(path, pa.table({"pair_id": ids, **columns}))


def _answers(name: str) -> list[dict[str, Any]]:
    """Only the answers of alpha are verified. Fewer models pass on the earlier pairs."""
    return [
        {
            "task": "alpha",
            "pair_id": f"alpha-{number}",
            "output": f"{HOSTILE} of {name}",
            "answer": "42",
            "passed": number >= 10 * LEVEL.get(name, 0.9),
        }
        for number in range(TEST_PAIRS["alpha"])
    ]


def _test_split(folder: Path, task: str) -> None:
    """Prompts of two messages; that of pair 3 is long."""
    rows = []
    for number in range(TEST_PAIRS[task]):
        text = f"{number}: {'long ' * 1000}{HOSTILE}" if number == 3 else f"{number}: {HOSTILE}"
        prompt = [{"role": role, "content": text, "more": None} for role in ("system", "user")]
        side = [{"role": "assistant", "content": "42", "more": None}]
        row = {"pair_id": f"{task}-{number}", "task": task, "prompt": prompt, "chosen": side, "rejected": side}
        rows.append(row | {"answer": "42"})
    files.write_table(split_path(folder, task, "test"), pa.Table.from_pylist(rows, split_schema(True)))


def _trajectory(folder: Path, name: str, generator: np.random.Generator, validate_every: int) -> Path:
    alone = [task for task in TASKS if specialist_name(task) == name]
    tasks = alone or TASKS
    metrics = ["loss", "margin", "accuracy"] + ([] if alone else ["difference", "excess", "clipped"])
    rows = []
    for step in range(1, STEPS + 1):
        weights = {task: 1 / len(tasks) for task in tasks}
        if name == "ama-r":
            weights = {"alpha": 0.5 + step / 100, "beta": 0.5 - step / 100}
        row = {"step": step, "weights": weights, "pairs": dict.fromkeys(tasks, 4 // len(tasks))}
        row |= {metric: {task: float(generator.uniform()) for task in tasks} for metric in metrics}
        if validate_every and step % validate_every == 0:
            measures = ["loss"] if alone else ["loss", "gap"]
            values = {task: (step - STEPS / 2) ** 2 / 1000 + LEVEL.get(name, 0.1) for task in tasks}
            row["validation"] = dict.fromkeys(measures, values)
        rows.append(row)
    path = folder / "trajectories" / f"{name}.jsonl"
    files.write_jsonl(path, rows)
    return path


def _card(task: str, source: str) -> dict[str, Any]:
    length = {"mean": 5.5, "max": 9}
    return {
        "name": task,
        "source": source,
        "sources": [
            {
                "path": source,
                "rows": {"read": 60, "duplicate": 3},
                "pairs": {"train": 8, "validation": 4, "test": TEST_PAIRS[task]},
                "passed_over": {},
            }
        ],
        "long_answers": {"pairs": 2, "chosen": 2, "rejected": 1},
        "pairs": {"train": 8, "validation": 4, "test": TEST_PAIRS[task]},
        "tokens": {"prompt": length, "chosen": length, "rejected": length},
        "swapped": 2 if task == "beta" else 0,
    }


def _losses(folder: Path, task: str) -> Path:
    """The specialist of beta prefers the rejected answer of two of its 8 training pairs."""
    output = folder / "specialist_losses" / task
    losses = [0.1] * 6 + ([2.0, 1.0] if task == "beta" else [0.1, 0.1])
    table = pa.table({"pair_id": [str(number) for number in range(8)], "loss": losses})
    files.write_table(output / "train.parquet", table)
    gap = {"alpha": 0.25, "beta": -0.3}[task]
    manifest = {"task": task, "mean_loss": {"train": 0.1, "test": 0.1 + gap}, "gap": gap, "cross_fit": False}
    files.write_json(output / caches.MANIFEST, manifest)
    return output


def hostile_facts(facts: Any) -> Any:
    """The facts of a run's page with a hostile text in every name, key that is a name, and free text."""
    names = {task: task + EVERYWHERE for task in TASKS}
    names |= {specialist_name(task): specialist_name(names[task]) for task in TASKS}
    names |= {model: model + EVERYWHERE for model in LEVEL}
    structure = {"kind", "family", "metrics", "ranked_by", "date"}

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
    """The JSON in a page."""
    text = page.read_text(encoding="utf-8")
    start = text.index('id="data">') + len('id="data">')
    return json.loads(text[start : text.index("</script>", start)])
