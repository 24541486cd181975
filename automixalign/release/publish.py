"""The last step of a run with an `output`: models, leaderboard and report go where they are wanted."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from automixalign.config.release import OutputSpec, PublicationSettings
from automixalign.steps.step import current_step
from automixalign.storage import files
from automixalign.storage.publication import Manifest, publish
from automixalign.system.errors import UnreachableError

_PAUSES = (5, 20, 60)
"""Seconds before each further attempt: boto3's own ones outlast a server's absence by seconds only."""


def publish_run(
    settings: PublicationSettings,
    artifacts: Mapping[str, Path],
    output: Path,
    pauses: Sequence[float] = _PAUSES,
) -> dict[str, Any]:
    """Publish a run's artifacts (name -> path) to the experiment's `output`; write the manifest to `output`.

    A server that is away is waited for: the run behind may have taken days.

    Returns:
        Where they are, how many files and bytes.

    Raises:
        StorageError: the place holds another publication, or cannot be written to.
    """
    manifest = _patiently(settings.output, settings.run, artifacts, pauses)
    files.write_text(output, manifest.model_dump_json(indent=2) + "\n")
    sizes = [file.size for file in manifest.files.values()]
    facts = {"to": settings.output.to, "files": len(sizes), "bytes": sum(sizes)}
    current_step().record.add_params(facts)
    return facts


def _patiently(spec: OutputSpec, run: str, artifacts: Mapping[str, Path], pauses: Sequence[float]) -> Manifest:
    """Publish, or go on with a publication that was broken off, until it is whole."""
    for pause in pauses:
        try:
            return publish(artifacts, spec.to, run=run, replace=spec.replace)
        except UnreachableError as error:
            current_step().warn(f"{error}; trying again in {pause:g} s")
            time.sleep(pause)
    return publish(artifacts, spec.to, run=run, replace=spec.replace)
