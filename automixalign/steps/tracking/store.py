"""MLflow's stores in files: a SQLite database with a folder of artifacts beside it."""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from automixalign.system.errors import ConfigError

STORE, ARTIFACTS = "mlflow.db", "mlartifacts"
_SQLITE = "sqlite:///"


def default_store() -> str:
    """The URI of the store that MLflow itself takes by default: one for all runs of a working directory."""
    return sqlite_uri(Path(STORE))


def sqlite_uri(file: Path) -> str:
    """The absolute URI of a SQLite store. MLflow ends a path at `?`, and decodes `%`."""
    return _SQLITE + str(file.absolute()).replace("%", "%25").replace("?", "%3F")


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite store, absolute; None for other stores."""
    if not uri.startswith(_SQLITE):
        return None
    return Path(unquote(uri.removeprefix(_SQLITE).partition("?")[0])).absolute()


def check_no_folder(uri: str) -> None:
    """Refuse a store of the kind that MLflow no longer writes.

    Raises:
        ConfigError: the URI names a folder, and MLFLOW_ALLOW_FILE_STORE is not `true`.
    """
    is_folder = urlsplit(uri).scheme in ("", "file") and not uri.startswith("databricks")
    if is_folder and os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() != "true":
        raise ConfigError(
            f"tracking.uri: the MLflow store {uri} is a folder of files, which MLflow no longer writes; name a "
            "server or a database, such as sqlite:///mlflow.db"
        )
