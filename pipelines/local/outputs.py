"""List the artifacts of a run: kfp's runner writes an `executor_output.json` beside those of each stage."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from automixalign.report import run_folder
from automixalign.storage import files

EXECUTOR_OUTPUT = "executor_output.json"


def list_artifacts(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Path and metadata of every artifact of the stages that succeeded, or whose results the cache had."""
    for record in sorted(folder.rglob(EXECUTOR_OUTPUT)):
        for output in files.read_json(record).get("artifacts", {}).values():
            for artifact in output["artifacts"]:
                yield Path(artifact["uri"]), artifact.get("metadata", {})


def training_costs(folder: Path) -> dict[str, dict[str, Any]]:
    """Model -> metadata of its training; empty if the run folder no longer holds kfp's records."""
    return {
        metadata["model"]: metadata
        for _, metadata in list_artifacts(folder / run_folder.WORK)
        if "model" in metadata and "seconds" in metadata
    }
