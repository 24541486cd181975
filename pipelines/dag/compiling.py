"""Compile an experiment's pipeline to KFP's IR YAML."""

from pathlib import Path

from kfp import compiler

from automixalign.config.experiment import Experiment
from automixalign.storage import files
from pipelines.dag.pipeline import build_pipeline
from pipelines.dag.placement import ClusterPlacement


def write_pipeline(experiment: Experiment, path: Path) -> None:
    """Write an experiment's pipeline; the experiment is the default of its parameter `config`.

    Args:
        experiment: the checked configuration.
        path: the YAML file, replaced atomically.
    """
    with files.replacing(path) as temporary:
        compiler.Compiler().compile(build_pipeline(experiment, ClusterPlacement(experiment)), str(temporary))
