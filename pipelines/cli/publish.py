"""`ama publish`."""

from typing import Annotated

import typer

from pipelines.cli.options import RunFolder


def publish(
    folder: RunFolder,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="DIR|s3://…", help="Where to. [default: the run's output]"),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace what another run published there.")
    ] = False,
) -> None:
    """Copy the models, the leaderboard and the report of a finished run, as the stage `publish` does.

    Examples:

        ama publish runs/quickstart-20250101-120000 --to s3://bucket/run-7

        ama publish runs/quickstart-20250101-120000 --to published --replace
    """
    from automixalign.release.publish_again import publish_again

    destination, manifest = publish_again(folder, to, replace)
    size = sum(file.size for file in manifest.files.values())
    typer.echo(f"published {destination}: {len(manifest.files)} files, {size / 1e6:,.1f} MB")
