"""Digests of the artifacts that stages hand to each other.

A finished stage writes the SHA-256 of each output into the output's metadata. A stage refuses an input that was
truncated, altered or replaced since then. The local cache also knows a result by these metadata
(`pipelines/local/stage_cache.py`).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from automixalign.storage import files
from automixalign.system.errors import CacheError

DIGEST = "digest"


class Artifact(Protocol):
    """What kfp passes to a component."""

    path: str
    metadata: dict[str, Any]


def flat(*artifacts: Any) -> list[Artifact]:
    """One list of artifacts and of lists of artifacts; what a pipeline leaves out is None."""
    lists = (each if isinstance(each, list) else [each] for each in artifacts if each is not None)
    return [artifact for each in lists for artifact in each]


def seal(artifacts: Iterable[Artifact]) -> None:
    """Write the digest of each artifact into its metadata."""
    for artifact in artifacts:
        artifact.metadata[DIGEST] = files.digest(Path(artifact.path))


def verify(artifacts: Iterable[Artifact]) -> None:
    """Check that artifacts have their digests.

    Raises:
        CacheError: one is missing or has changed; the message names its path.
    """
    for artifact in artifacts:
        if fault := fault_of(artifact):
            raise CacheError(f"{fault}; start the run again, which runs that stage again")


def fault_of(artifact: Artifact) -> str | None:
    """What is wrong with a sealed artifact; None if it is unchanged, or was never sealed."""
    expected = artifact.metadata.get(DIGEST)
    if expected is None:
        return None
    if not Path(artifact.path).exists():
        return f"{artifact.path} is gone"
    if files.digest(Path(artifact.path)) != expected:
        return f"{artifact.path} has changed since its stage wrote it"
    return None
