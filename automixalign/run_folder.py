"""The run folder: one place with stable names for what the steps of a run made.

    config.yaml  leaderboard.{json,md}  report/{index.html,data.json}  plots/  data/TASK/  reference_logps/TASK/
    specialist_losses/TASK/  evaluations/MODEL/  models/MODEL/  trajectories/MODEL.jsonl  logs/

Each step states in its artifacts' metadata (`run_path`) where they belong; files are linked, not copied.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from automixalign import files
from automixalign.errors import ConfigError

CONFIG = "config.yaml"
LOGS = "logs"


def create(folder: Path) -> None:
    """Make a new run folder, and see that it can be written to before anything long begins.

    Raises:
        ConfigError: it holds something already, or cannot be written to.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--output {folder} holds something already; name a new folder")
    try:
        (folder / LOGS).mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"--output {folder} cannot be written to: {error}") from error


def publish(folder: Path, artifacts: Iterable[tuple[Path, dict[str, Any]]]) -> None:
    """Link artifacts (path and metadata) to their places in the run folder."""
    for path, metadata in artifacts:
        if path.exists() and "run_path" in metadata:
            files.link(path, folder / metadata["run_path"])
