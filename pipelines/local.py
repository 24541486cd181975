"""Run the DAG on this machine through kfp's local runner: `python -m pipelines.local CONFIG FOLDER [FILE]`.

The steps are processes, or containers as the file of `containers.py` says.
"""

import json
import logging
import sys
from pathlib import Path

from kfp import local

from automixalign import config
from pipelines.automixalign import build
from pipelines.containers import docker_runner

WORKERS = 2
"""How many iterations of a loop kfp's local runner runs at a time."""


def run(experiment: config.Experiment, pipeline_root: Path, containers: Path | None = None) -> None:
    """Run every step of the experiment, with the steps' artifacts below `pipeline_root`.

    Raises:
        RuntimeError: a step failed; its own log says why.
    """
    local.init(
        runner=docker_runner(containers) if containers else local.SubprocessRunner(use_venv=False),
        pipeline_root=str(pipeline_root),
        workspace_root=str(pipeline_root / "workspace"),
        raise_on_error=True,
    )
    build(experiment)(config=experiment.model_dump_json())


if __name__ == "__main__":
    logging.captureWarnings(True)
    config_file, *places = map(Path, sys.argv[1:])
    run(config.parse(json.loads(config_file.read_text()), str(config_file)), *places)
