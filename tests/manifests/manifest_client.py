"""Uses the servers of the manifests as a stage of a run does: first `log`, then `read`."""

import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

import boto3
import mlflow

FILE_BYTES = 20 * 2**20
"""In bytes: more than S3 takes in one part."""


def log() -> None:
    """Log a run with a file, which MLflow stores in S3, and register a model."""
    weights = Path.home() / "weights.bin"
    weights.write_bytes(os.urandom(FILE_BYTES))
    with mlflow.start_run() as run:
        mlflow.log_metric("worst_excess", 0.25)
        mlflow.log_artifact(str(weights))
    mlflow.MlflowClient().create_registered_model("assistant")
    assert _download(run.info.run_id).read_bytes() == weights.read_bytes()
    store = boto3.client("s3", region_name=os.environ["AWS_DEFAULT_REGION"])
    objects = store.list_objects_v2(Bucket="automixalign", Prefix="mlflow/")["Contents"]
    assert [entry["Size"] for entry in objects] == [FILE_BYTES], objects
    assert _status("localhost:5000") == 200
    assert _status("rebound.example.com:5000") == 403


def read() -> None:
    """Read what `log` stored."""
    (run,) = mlflow.search_runs(experiment_ids=["0"], output_format="list")
    assert run.data.metrics == {"worst_excess": 0.25}
    assert _download(run.info.run_id).stat().st_size == FILE_BYTES
    (model,) = mlflow.MlflowClient().search_registered_models()
    assert model.name == "assistant"


def _download(run_id: str) -> Path:
    return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="weights.bin"))


def _status(host: str) -> int:
    """The HTTP status of MLflow's answer to a request for this host name."""
    address = f"{os.environ['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/experiments/get?experiment_id=0"
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers={"Host": host})) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


if __name__ == "__main__":
    {"log": log, "read": read}[sys.argv[1]]()
    print("all of it worked")
