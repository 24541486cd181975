"""What steps hand to each other is held against the digest that its maker gave it.

A step that finished writes the SHA-256 of each of its outputs into the output's metadata, and a step that
begins looks at its inputs: one that was cut short, altered or exchanged meanwhile is refused, wherever it was
kept. The metadata are also what a cached result is known by (see `pipelines/local/caching.py`).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from automixalign.storage import files
from automixalign.system.errors import CacheError

DIGEST = "digest"


class Artifact(Protocol):
    """What kfp hands to a component."""

    path: str
    metadata: dict[str, Any]


def seal(artifacts: Iterable[Artifact]) -> None:
    """Write the digest of what a step has made into its metadata."""
    for artifact in artifacts:
        artifact.metadata[DIGEST] = files.digest(Path(artifact.path))


def verify(artifacts: Iterable[Artifact]) -> None:
    """See that a step's inputs are as they were made.

    Raises:
        CacheError: one is gone, or has changed since; its name and path.
    """
    for artifact in artifacts:
        if fault := fault_of(artifact):
            raise CacheError(f"{fault}; start the run again, and the step that made it runs anew")


def fault_of(artifact: Artifact) -> str | None:
    """What is wrong with an artifact that was sealed, None if nothing is."""
    expected = artifact.metadata.get(DIGEST)
    if expected is None:
        return None
    if not Path(artifact.path).exists():
        return f"{artifact.path} is gone"
    if files.digest(Path(artifact.path)) != expected:
        return f"{artifact.path} is not what the step that made it had written"
    return None
