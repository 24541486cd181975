"""A real MLflow server."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.servers.mlflow_store import sqlite_store


@contextmanager
def server(folder: Path, port: int, artifacts: str) -> Iterator[str]:
    """A real MLflow server on 127.0.0.1, ended with its whole process group.

    Args:
        folder: keeps its database and its log.
        artifacts: where it keeps what runs leave: an `s3://` prefix of the server that the environment names,
            or a folder.
    """
    command = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", sqlite_store(folder / "server.db"), "--artifacts-destination", artifacts]
    environment = dict(os.environ)
    if endpoint := environment.get("AWS_ENDPOINT_URL"):
        environment["MLFLOW_S3_ENDPOINT_URL"] = endpoint
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command],
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 90
        while not _answers(uri):
            if process.poll() is not None or time.monotonic() > deadline:
                log_text = (folder / "server.log").read_text(encoding="utf-8", errors="replace")
                raise RuntimeError(f"the MLflow server did not come up:\n{log_text[-2000:]}")
            time.sleep(0.2)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(uri: str) -> bool:
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=2) as answer:  # noqa: S310  our own server
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
