"""Experiments, and readable excerpts of their compiled pipelines in `golden/NAME.yaml`.

`python tests/pipeline/compiled.py` (part of `make compile`) writes them again after an intended change.
"""

import re
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from automixalign.config.experiment import Experiment, parse_experiment
from pipelines.cli.options import load_experiment
from pipelines.dag.compiling import write_pipeline
from pipelines.dag.transfers import transfers_of

GOLDEN = Path(__file__).parent / "golden"
KUBEFLOW = Path(__file__).parents[2] / "docs" / "kubeflow.md"


def _experiment(cluster: dict[str, Any], tasks: int = 2, **changes: Any) -> Experiment:
    training = {"batch_size": 64, "micro_batch_size": 1, "learning_rate": 5e-7, **changes.pop("training", {})}
    data = {
        "name": "golden",
        "base_model": "s3://models/base",
        "tasks": [{"name": f"task-{number}", "source": f"s3://data/task-{number}/"} for number in range(tasks)],
        "training": training,
        "budget": {"specialist": {"steps": 100}, "generalist": {"steps": 400}},
        "methods": ["uniform", "ama-r"],
        "cluster": cluster,
        **changes,
    }
    return parse_experiment(data, "golden")


def _gpus(count: int) -> dict[str, Any]:
    one = {"cpu": 8, "memory": "64Gi", "accelerators": 1}
    many = {"cpu": 8 * count, "memory": f"{64 * count}Gi", "accelerators": count, "shared_memory": "16Gi"}
    nodes = {
        "node_selector": {"node.kubernetes.io/instance-type": "gpu"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    }
    return {
        "default": {"cpu": 2, "memory": "8Gi", "scratch": "50Gi", "timeout_seconds": 3600},
        "steps": {
            **{stage: one | nodes for stage in ("reference_logps", "evaluate", "specialist_losses")},
            **{
                stage: many | nodes | {"timeout_seconds": 172800}
                for stage in ("train_specialist", "train_generalist")
            },
        },
    }


EXPERIMENTS = {
    "cpu": _experiment({"default": {"cpu": "500m", "cpu_limit": 2, "memory": "4Gi"}}, merges=["linear"]),
    "one-gpu": _experiment(_gpus(1), registry={"name": "assistant"}, output="s3://results/golden"),
    "eight-gpus": _experiment(
        _gpus(8) | {"ttl_seconds": 604800, "image_pull_secrets": ["registry"]}, training={"processes": 8}
    ),
    "two-nodes": _experiment(
        _gpus(8) | {"train_job": {"storage": "s3://results/jobs"}},
        training={"batch_size": 128, "processes": 8, "nodes": 2, "fsdp": True},
    ),
    "lora": _experiment(
        _gpus(1) | {"cache": False, "secrets": {"hub": None}, "environment": None},
        training={"lora": {"rank": 16}},
        merges=["ties"],
    ),
    "every-part": _experiment(
        {},
        benchmarks=["toxigen", "gsm8k"],
        registry={"name": "assistant"},
        merges=["linear", {"method": "ties", "weights": "tuned"}],
        methods=["uniform", {"method": "uniform", "name": "warm", "init": "ties"}],
        output="s3://results/golden",
    ),
    "judged": _experiment(
        {},
        merges=["linear"],
        methods=["uniform", {"method": "uniform", "name": "warm", "init": "linear"}],
        evaluation={"judge": {"base_url": "https://judge.example/v1", "model": "judge"}},
    ),
    "many-tasks": _experiment(
        {"default": {"retries": {"times": 0}}}, tasks=12, merges=["linear", "ties"], methods=["standard"]
    ),
}


def read_documents(path: Path) -> list[Any]:
    """The documents of a YAML file; libyaml reads them ten times as fast."""
    return list(yaml.load_all(path.read_text(), yaml.CSafeLoader))


def compile_experiment(experiment: Experiment, folder: Path) -> list[Any]:
    """The documents of an experiment's compiled pipeline."""
    write_pipeline(experiment, folder / "pipeline.yaml")
    return read_documents(folder / "pipeline.yaml")


@cache
def pipeline(name: str) -> list[Any]:
    """The documents of a compiled pipeline: its spec and its Kubernetes settings."""
    with tempfile.TemporaryDirectory() as folder:
        return compile_experiment(EXPERIMENTS[name], Path(folder))


def _grouped(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Each setting once, with the names that have it."""
    groups: list[tuple[list[str], Any]] = []
    for name, setting in sorted(settings.items()):
        same = next((names for names, other in groups if other == setting), None)
        if same is None:
            groups.append(([name], setting))
        else:
            same.append(name)
    return [{"names": names, "settings": setting} for names, setting in groups]


def summary(documents: list[Any]) -> dict[str, Any]:
    """What the configuration sets: retries and caching of the tasks, resources of the containers."""
    spec, platform = documents[0], documents[1]["platforms"]["kubernetes"]
    dags = {"root": spec["root"]} | {k: c for k, c in spec["components"].items() if "dag" in c}
    tasks = {
        f"{dag}/{name}": {key: task[key] for key in ("cachingOptions", "retryPolicy") if task.get(key)}
        for dag, component in dags.items()
        for name, task in component["dag"]["tasks"].items()
        if task["componentRef"]["name"] not in dags
    }
    executors = {
        name: {
            "resources": executor["container"].get("resources", {}),
            **platform["deploymentSpec"]["executors"].get(name, {}),
        }
        for name, executor in spec["deploymentSpec"]["executors"].items()
    }
    others = {key: value for key, value in platform.items() if key != "deploymentSpec"}
    return {"tasks": _grouped(tasks), "executors": _grouped(executors), "pipeline": others}


def golden(name: str) -> str:
    """The text of a golden file."""
    return yaml.safe_dump(summary(pipeline(name)), sort_keys=True, width=110)


def transfers_table() -> str:
    """What the pods of `zephyr-7b` transfer, as docs/kubeflow.md shows it."""
    tasks = [f"{name}=org/{name}" for name in ("helpful", "harmless", "reasoning")]
    rows = transfers_of(load_experiment("zephyr-7b", tasks=tasks))
    cells = [(each.title, each.runs, each.downloads.models, each.uploads.models) for each in rows]
    totals = ("all", *(sum(numbers) for numbers in list(zip(*cells, strict=True))[1:]))
    head = [("stage", "pods", "models downloaded", "models uploaded"), ("---", *["---:"] * 3)]
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in (*head, *cells, totals))


def with_transfers(page: str) -> str:
    """The page with the present table."""
    return re.sub(
        r"(<!-- transfers:.*?-->\n).*?(<!-- end -->)", rf"\1\n{transfers_table()}\n\2", page, flags=re.S
    )


if __name__ == "__main__":
    KUBEFLOW.write_text(with_transfers(KUBEFLOW.read_text()))
    GOLDEN.mkdir(exist_ok=True)
    for experiment in EXPERIMENTS:
        (GOLDEN / f"{experiment}.yaml").write_text(golden(experiment))
