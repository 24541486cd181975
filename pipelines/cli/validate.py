"""`ama validate`."""

import typer

from pipelines.cli.options import Config, Preset, Sets, Tasks, load_experiment


def validate(preset: Preset = None, file: Config = None, task: Tasks = None, set_: Sets = None) -> None:
    """Check a configuration and its sources, and print it with all defaults.

    Example:

        ama validate --preset quickstart --set training.beta=0.2
    """
    from automixalign.config.file import dump_yaml
    from automixalign.preflight.validate import check_local_sources, plan_experiment

    experiment = load_experiment(preset, file, task, set_)
    check_local_sources(experiment)
    plan_experiment(experiment)
    typer.echo(dump_yaml(experiment), nl=False)
