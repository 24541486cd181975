"""Run the DAG on this machine through kfp's local runner: `python -m pipelines.local FILE`.

The steps are processes, or containers as the file of `containers.py` says.
"""

import logging
import sys
from pathlib import Path

from kfp import local
from kfp.local import cache as kfp_cache
from pydantic import BaseModel

from automixalign import alive
from automixalign.config import Experiment
from pipelines import warm
from pipelines.automixalign import build
from pipelines.caching import StepCache
from pipelines.containers import docker_runner
from pipelines.placement import OnThisMachine

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

    def run(self) -> None:
        """Run every step that has not been done.

        Raises:
            RuntimeError: a step failed; its own log says why.
        """
        containers = docker_runner(self.containers) if self.containers else None
        local.init(
            runner=containers or local.SubprocessRunner(use_venv=False),
            pipeline_root=str(self.folder),
            workspace_root=str(self.folder / "workspace"),
            raise_on_error=True,
            enable_caching=True,
        )
        cache = StepCache(self.cache, self.folder, self.shared_cache)
        warm.install()
        kfp_cache.get_local_cache = lambda: cache  # it would make one of kfp's own kind
        build(self.experiment, OnThisMachine(self.retries))(config=self.experiment.model_dump_json())


if __name__ == "__main__":
    logging.captureWarnings(True)
    alive.depend()
    Attempt.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8")).run()
