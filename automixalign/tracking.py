"""Record a finished run with MLflow: parameters, curves, leaderboard, plots.

https://mlflow.org/docs/latest/ml/tracking/ - a run that the environment hands in (`MLFLOW_RUN_ID`, as Kubeflow
Pipelines does) is joined, not started anew.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from automixalign import files
from automixalign.config import Experiment

_AT_A_TIME = 1000  # what MLflow takes in one call


def record(
    experiment: Experiment,
    metrics: Mapping[str, float],
    trajectories: Mapping[str, Path],
    artifacts: Mapping[str, Path],
) -> str:
    """Write one MLflow run at `tracking.uri`.

    Args:
        experiment: its keys become the run's parameters (`training.beta`).
        metrics: the leaderboard's numbers.
        trajectories: generalist -> its per-step log, which becomes curves (`ama-r/weights/helpful`).
        artifacts: name -> text file or folder to keep with the run.

    Returns:
        The run's id.

    Raises:
        mlflow.exceptions.MlflowException: the store cannot be reached or refuses.
    """
    import mlflow
    from mlflow.entities import Metric

    tracking = experiment.tracking
    mlflow.set_tracking_uri(tracking.uri)
    mlflow.set_experiment(tracking.experiment)
    with mlflow.start_run(run_name=experiment.name) as run:
        client, run_id = mlflow.MlflowClient(), str(run.info.run_id)
        mlflow.log_params(dict(_flat(experiment.model_dump(mode="json"))))
        curves = [
            Metric(f"{name}/{key}", value, 0, row["step"])
            for name, path in trajectories.items()
            for row in files.read_jsonl(path)
            for key, value in _numbers(row)
        ]
        for start in range(0, len(curves), _AT_A_TIME):
            client.log_batch(run_id, metrics=curves[start : start + _AT_A_TIME])
        mlflow.log_metrics(dict(metrics))
        for name, path in artifacts.items():
            if path.is_dir():
                mlflow.log_artifacts(str(path), name)
            else:
                mlflow.log_text(path.read_text(encoding="utf-8"), name)
    return run_id


def _numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, by_task in row.items():
        if isinstance(by_task, dict):
            yield from ((f"{key}/{task}", value) for task, value in by_task.items() if value is not None)


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """`{"a": {"b": 1}}` -> `("a.b", 1)`; list elements by their index."""
    items: Iterable[tuple[Any, Any]]
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        yield key, value
        return
    for part, below in items:
        yield from _flat(below, f"{key}.{part}" if key else str(part))
