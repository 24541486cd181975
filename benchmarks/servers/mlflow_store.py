"""An MLflow store in a file."""

import tempfile
from functools import cache
from pathlib import Path

from mlflow import MlflowClient


def sqlite_store(file: Path) -> str:
    """The URI of a SQLite store, which is made where there is none.

    MLflow takes seconds to make its tables; here it does so once in a process, and further stores are copies.
    """
    if not file.exists():
        file.write_bytes(_tables())
    return _uri(file)


@cache
def _tables() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mlflow.db"
        MlflowClient(_uri(file)).search_experiments()
        return file.read_bytes()


def _uri(file: Path) -> str:
    return f"sqlite:///{file}"
