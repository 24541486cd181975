"""What the process is told that goes through the DAG of a local run."""

from pathlib import Path

from pydantic import BaseModel

from automixalign.config.experiment import Experiment

WORKERS = 2
"""How many iterations of a loop kfp's local runner runs at a time."""


class Attempt(BaseModel):
    """One start of a run: of a new one, or of one that was ended before."""

    experiment: Experiment
    folder: Path
    """Of the attempt, within the run folder: the steps' artifacts lie below it."""
    cache: Path
    """The results of this run folder."""
    shared_cache: Path | None = None
    """The results of all runs."""
    retries: int = 0
    containers: Path | None = None
    """What `containers.py` says of the containers that the steps are; without it they are processes."""
    environment: dict[str, str] = {}
    """What the steps are told, beyond what the user's own environment says."""
    log: Path | None = None
    """Where all goes that is printed and has no log of its own."""
