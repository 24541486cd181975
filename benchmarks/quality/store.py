"""Results that outlive a killed sweep: each is a folder named by what determines it, and made once."""

import fcntl
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from automixalign.config.settings import Settings
from automixalign.storage import files


class Store:
    """A folder of results, shared by processes and by later invocations.

    A result is known by the settings and the inputs it was made from, not by the library's code: after a change
    that alters results, begin a new store.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def made(self, kind: str, inputs: Any, make: Callable[[Path], object]) -> Path:
        """The folder or file of a result; `make` is called with a path to write it to, unless it is there.

        Args:
            kind: what it is, for people: the first part of its path.
            inputs: all that determines it: numbers, texts, settings, and paths of this store.
        """
        key = hashlib.sha256(json.dumps(inputs, sort_keys=True, default=_plain).encode()).hexdigest()[:20]
        path = self.root / kind / key
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be making it
                if not path.exists():
                    with files.replacing(path) as new:
                        make(new)
        return path


def write_results(file: Path, found: dict[str, Any]) -> None:
    """Write results as JSON, each of their `rows` on a line of its own."""
    head = {key: value for key, value in found.items() if key != "rows"}
    rows = ",\n".join(json.dumps(row) for row in found["rows"])
    start = json.dumps({**head, "rows": []}, indent=1).removesuffix("]\n}")
    files.write_text(file, f"{start}\n{rows}\n]}}\n")


def _plain(value: object) -> Any:
    if isinstance(value, Settings):
        return _undated(value.model_dump(mode="json"))
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Path):  # its last parts, which the store gave it
        return "/".join(value.parts[-2:])
    raise TypeError(f"{value!r} does not determine a result")


def _undated(settings: Any) -> Any:
    """Without code and environment, also of settings within settings."""
    if not isinstance(settings, dict):
        return settings
    return {
        key: _undated(value)
        for key, value in settings.items()
        if key not in ("code", "environment", "extensions")
    }
