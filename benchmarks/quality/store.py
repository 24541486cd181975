"""Keeps results across sweeps: each has a path that its inputs determine, and is made once."""

import fcntl
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from automixalign.storage import files

_CODE_KEYS = ("code", "environment", "plugins")


class Store:
    """A folder of results that processes and later sweeps share.

    Settings and inputs identify a result, the library's code does not. Use a new store after a change to the
    code that changes results.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def result(self, kind: str, inputs: Any, make: Callable[[Path], object]) -> Path:
        """The path of a result, which is made first if the store lacks it.

        Args:
            kind: the first part of the path, for people.
            inputs: everything that determines the result: numbers, texts, settings and paths in this store.
            make: writes the result to the path that it is given.
        """
        text = json.dumps(inputs, sort_keys=True, default=_as_json)
        path = self.root / kind / hashlib.sha256(text.encode()).hexdigest()[:20]
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be making it
                if not path.exists():
                    with files.replacing(path) as new:
                        make(new)
        return path


def write_results(file: Path, results: Mapping[str, Any]) -> None:
    """Write results as JSON with one line for each of their `rows`."""
    rows = ",\n".join(json.dumps(row) for row in results["rows"])
    head = {key: results[key] for key in results if key != "rows"}
    opening = json.dumps({**head, "rows": []}, indent=1).removesuffix("]\n}")
    files.write_text(file, f"{opening}\n{rows}\n]}}\n")


def _as_json(value: object) -> Any:
    if isinstance(value, BaseModel):
        return _without_code(value.model_dump(mode="json"))
    if isinstance(value, Path):
        return "/".join(value.parts[-2:])  # kind and key
    raise TypeError(f"{value!r} does not determine a result")


def _without_code(settings: Any) -> Any:
    """Drop the digests of code and environment, in nested settings, too."""
    if not isinstance(settings, dict):
        return settings
    return {key: _without_code(value) for key, value in settings.items() if key not in _CODE_KEYS}
