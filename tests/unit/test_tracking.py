"""Recording a run in a real MLflow store (SQLite)."""

import json
import os
from pathlib import Path
from typing import Any

import mlflow
import pytest

from automixalign import config, files, tracking


def test_a_run_is_recorded_and_one_handed_in_is_joined(
    experiment_data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where MLflow puts the artifacts of a SQLite store
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    experiment = config.parse(experiment_data | {"tracking": {"uri": uri}}, "test")
    log = tmp_path / "ama-r.jsonl"
    rows = [{"step": step, "weights": {"a": 0.1 * step}, "loss": {"a": None}} for step in (1, 2, 3)]
    files.write_jsonl(log, rows)
    board = tmp_path / "board"
    board.write_text(json.dumps([1]))
    run_id = tracking.record(experiment, {"ama-r.worst.excess": 0.5}, {"ama-r": log}, {"board.json": board})
    client = mlflow.MlflowClient(uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["training.batch_size"] == "4"
    assert run.data.metrics["ama-r.worst.excess"] == 0.5
    curve = client.get_metric_history(run_id, "ama-r/weights/a")
    assert [point.step for point in curve] == [1, 2, 3]
    assert [point.value for point in curve] == pytest.approx([0.1, 0.2, 0.3])
    assert [artifact.path for artifact in client.list_artifacts(run_id)] == ["board.json"]

    handed_in = client.create_run(run.info.experiment_id).info.run_id
    monkeypatch.setitem(os.environ, "MLFLOW_RUN_ID", handed_in)
    assert tracking.record(experiment, {}, {}, {}) == handed_in
