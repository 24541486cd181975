"""Find what kfp's local runner wrote: each step leaves an `executor_output.json` beside its artifacts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from automixalign.report import run_folder
from automixalign.storage import files


def artifacts(attempt: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Path and metadata of every output artifact of the steps that finished, or were taken from the cache."""
    for record in sorted(attempt.rglob("executor_output.json")):
        for output in files.read_json(record).get("artifacts", {}).values():
            for artifact in output["artifacts"]:
                yield Path(artifact["uri"]), artifact.get("metadata", {})


def training_costs(folder: Path) -> dict[str, dict[str, Any]]:
    """Generalist or specialist -> what its training returned, if the run folder still holds kfp's records."""
    return {
        metadata["model"]: metadata
        for _, metadata in artifacts(folder / run_folder.WORK)
        if "model" in metadata and "seconds" in metadata
    }
