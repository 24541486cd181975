"""`ama compile`."""

from pathlib import Path
from typing import Annotated

import typer

from automixalign.system.errors import ConfigError
from pipelines.cli.options import Config, Preset, Sets, Tasks, load_experiment, warn_about_tag


def compile_pipeline(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.yaml", help="File of the compiled pipeline.")
    ],
    preset: Preset = None,
    file: Config = None,
    task: Tasks = None,
    set_: Sets = None,
) -> None:
    """Compile an experiment's pipeline to KFP's IR YAML, for an upload to Kubeflow Pipelines.

    Its one parameter, `config`, has the experiment as its default. The configuration's key `cluster` sets the
    resources of each stage; the environment variable AMA_IMAGE names the container image.

    Example:

        AMA_IMAGE=registry/automixalign@sha256:... ama compile --config my.yaml --output my-pipeline.yaml
    """
    from pipelines.dag.compiling import write_pipeline

    if output.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--output {output}: the name must end in .yaml")
    experiment = load_experiment(preset, file, task, set_)
    try:
        write_pipeline(experiment, output)
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written: {error}") from error
    warn_about_tag()
