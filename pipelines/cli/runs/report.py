"""`ama report`."""

from pathlib import Path
from typing import Annotated

import typer

from automixalign.system.errors import ConfigError
from pipelines.cli.options import complete_run


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="One or several run folders.", autocompletion=complete_run),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="File of the page, for several run folders."),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline",
            "-b",
            metavar="NAME",
            help="Model to compare with, for several run folders; by default uniform, or the first method.",
        ),
    ] = None,
) -> None:
    """Write the report of a run again, or a page that compares runs of several seeds.

    Examples:

        ama report runs/quickstart-20250101-120000

        ama report runs/seed-0 runs/seed-1 runs/seed-2 --output seeds.html --baseline standard
    """
    from automixalign.report import comparison, runs
    from pipelines.local.outputs import training_costs

    if (len(folders) > 1) != (output is not None):
        raise ConfigError("report: --output FILE goes with several run folders, and only with them")
    if output is None:
        output = runs.rebuild(folders[0], training_costs(folders[0]))
    else:
        comparison.write_comparison(folders, output, baseline)
    typer.echo(output)
