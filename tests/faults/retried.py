"""A pipeline of one training that kfp's local runner retries.

`python -m tests.faults.retried FILE FOLDER`: FILE holds the training as JSON, FOLDER is kfp's, and the
checkpoints go to `AMA_CHECKPOINTS`.
"""

import os
import sys
from pathlib import Path

from kfp import dsl, local

from automixalign.training.checkpoints.folder import CHECKPOINTS_VARIABLE
from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train_generalist(training: str) -> None:
    """Train a generalist, as the component of this name does."""
    from automixalign.steps.step import run_step
    from automixalign.training.generalist import GeneralistTraining
    from automixalign.training.launch import train

    with run_step("train_generalist"):
        train(GeneralistTraining.model_validate_json(training))


@dsl.pipeline
def retried(training: str) -> None:
    """One training, retried once."""
    task = train_generalist(training=training)
    task.set_retry(1, "1s", 1).set_env_variable(CHECKPOINTS_VARIABLE, os.environ[CHECKPOINTS_VARIABLE])


if __name__ == "__main__":
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[2], raise_on_error=True)
    retried(training=Path(sys.argv[1]).read_text())
