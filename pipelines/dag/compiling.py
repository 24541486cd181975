"""The pipeline of an experiment as KFP's IR YAML."""

from pathlib import Path

from kfp import compiler

from automixalign.config.experiment import Experiment
from automixalign.storage import files
from pipelines.dag.pipeline import build
from pipelines.dag.placement import OnCluster


def write(experiment: Experiment, path: Path) -> None:
    """Compile an experiment's pipeline; its parameter `config` is the experiment by default.

    Args:
        experiment: the checked configuration.
        path: the YAML file, replaced in one step.
    """
    with files.replacing(path) as place:
        compiler.Compiler().compile(build(experiment, OnCluster(experiment)), str(place))
