"""One attempt to run an experiment: the first one, or one that resumes the run."""

from pathlib import Path

from pydantic import BaseModel

from automixalign.config.experiment import Experiment

WORKERS = 2
"""How many iterations of a loop kfp's local runner runs at a time."""


class Attempt(BaseModel):
    """What the process that runs the DAG must know."""

    experiment: Experiment
    folder: Path
    """Folder of the attempt, inside the run folder; it holds the artifacts of the stages."""
    cache: Path
    """Cache of this run folder."""
    shared_cache: Path | None = None
    """Cache of all runs; None to use only this run folder's."""
    retries: int = 0
    """How many times to retry a failed stage."""
    containers: Path | None = None
    """File that describes the containers of the stages (see `containers.py`); None to run them as processes."""
