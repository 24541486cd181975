"""Real MLflow servers."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.servers.mlflow_store import sqlite_store


@contextmanager
def server(folder: Path, port: int, artifacts: str) -> Iterator[str]:
    """A tracking server; yields its address.

    Args:
        folder: for its database and its log.
        port: on 127.0.0.1.
        artifacts: where it stores artifacts: a folder, or an `s3://` prefix on the server of the environment.
    """
    command = ["server", "--workers", "1", "--backend-store-uri", sqlite_store(folder / "server.db")]
    command += ["--artifacts-destination", artifacts]
    with running(command, port, folder / "server.log", "health") as uri:
        yield uri


@contextmanager
def running(command: list[str], port: int, log: Path, health: str) -> Iterator[str]:
    """Run an MLflow command that serves; yields its address, and kills its process group at the end.

    Args:
        command: the arguments of `mlflow`, without host and port.
        port: on 127.0.0.1.
        log: the file for its output.
        health: the path that answers when the server is ready.
    """
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    if endpoint := environment.get("AWS_ENDPOINT_URL"):
        environment["MLFLOW_S3_ENDPOINT_URL"] = endpoint
    address = ["--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command, *address],
            stdout=out,
            stderr=out,
            env=environment,
            start_new_session=True,
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 90
        while not _answers(f"{uri}/{health}"):
            if process.poll() is not None or time.monotonic() > deadline:
                text = log.read_text(encoding="utf-8", errors="replace")
                raise RuntimeError(f"the MLflow server did not start:\n{text[-2000:]}")
            time.sleep(0.2)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310  our own server
            return bool(answer.status == 200)
    except OSError:
        return False
