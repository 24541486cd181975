"""The stage `publish`, of runs with an `output`: copy models, leaderboard and report there."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from automixalign.config.release import OutputSpec, PublicationSettings
from automixalign.models.base_address import read_address
from automixalign.models.safety import is_adapter
from automixalign.steps.step import current_step
from automixalign.storage import files
from automixalign.storage.publication import Manifest, publish
from automixalign.system.errors import UnreachableError

_REFERENCE = "models/reference"
"""The name of the reference model among the artifacts."""
_PAUSE_SECONDS = (5, 20, 60)
"""Before each further attempt. boto3's own retries give up after a few seconds."""


def publish_run(
    settings: PublicationSettings,
    artifacts: Mapping[str, Path],
    output: Path,
    pause_seconds: Sequence[float] = _PAUSE_SECONDS,
) -> dict[str, Any]:
    """Copy a run's artifacts to the experiment's `output`.

    Tries again if a server is down, because the run may have taken days. What is published loads on other
    machines: an adapter of a base model that only this machine has is published as a full model.

    Args:
        settings: of the stage.
        artifacts: name below `output` -> file or folder.
        output: the file for the manifest.
        pause_seconds: before each further attempt.

    Returns:
        `to`, and how many `files` and `bytes`.

    Raises:
        StorageError: the destination holds another publication, or cannot be written.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".publication-", dir=output.parent) as scratch:
        artifacts = portable(artifacts, Path(scratch))
        manifest = _publish_with_retries(settings.output, settings.run, artifacts, pause_seconds)
    files.write_text(output, manifest.model_dump_json(indent=2) + "\n")
    sizes = [file.size for file in manifest.files.values()]
    facts = {"to": settings.output.to, "files": len(sizes), "bytes": sum(sizes)}
    current_step().record.add_params(facts)
    return facts


def portable(artifacts: Mapping[str, Path], scratch: Path) -> dict[str, Path]:
    """The artifacts without what only this machine can load.

    Args:
        artifacts: name -> file or folder.
        scratch: a folder for full models in place of adapters.
    """
    results = dict(artifacts)
    reference = artifacts.get(_REFERENCE)
    address = read_address(reference) if reference else None
    if reference is None or (address is not None and not address.is_local):
        return results
    from automixalign.models.full_model import write_full_model
    from automixalign.models.prepare import transformers_silenced

    for name, model in artifacts.items():
        if is_adapter(model) or (name == _REFERENCE and address is not None):
            results[name] = scratch / name
            with transformers_silenced():
                write_full_model(model, reference, results[name])
    return results


def _publish_with_retries(
    spec: OutputSpec, run: str, artifacts: Mapping[str, Path], pause_seconds: Sequence[float]
) -> Manifest:
    """Publish; each further attempt continues an interrupted publication."""
    for seconds in pause_seconds:
        try:
            return publish(artifacts, spec.to, run=run, replace=spec.replace)
        except UnreachableError as error:
            current_step().warn(f"{error}; trying again in {seconds:g} s")
            time.sleep(seconds)
    return publish(artifacts, spec.to, run=run, replace=spec.replace)
