"""The last step of a run with an `output`: models, leaderboard and report go where they are wanted."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from automixalign import files, progress
from automixalign.errors import ConfigError
from automixalign.publish import publish
from automixalign.settings import PublicationSettings


def publish_run(settings: PublicationSettings, artifacts: Mapping[str, Path], output: Path) -> dict[str, Any]:
    """Publish a run's artifacts (name -> path) to the experiment's `output`; write the manifest to `output`.

    Returns:
        Where they are, how many files and bytes.

    Raises:
        ConfigError: the experiment has no `output`.
        StorageError: the place holds another publication, or cannot be written to.
    """
    if settings.output is None:
        raise ConfigError("output: the experiment names no place to publish to")
    manifest = publish(artifacts, settings.output.to, run=settings.run, replace=settings.output.replace)
    files.write_text(output, manifest.model_dump_json(indent=2) + "\n")
    sizes = [file.size for file in manifest.files.values()]
    facts = {"to": settings.output.to, "files": len(sizes), "bytes": sum(sizes)}
    progress.current().record.add_params(facts)
    return facts
