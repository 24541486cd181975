"""`ama presets`."""

from typing import Annotated

import typer

from pipelines.cli.options import complete_preset, preset_names, preset_path


def presets(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Print this preset.", autocompletion=complete_preset),
    ] = None,
) -> None:
    """List the presets, or print one, to copy it as a configuration of your own.

    Examples:

        ama presets

        ama presets smollm2
    """
    if name is not None:
        typer.echo(_text(name), nl=False)
        return
    width = max(map(len, preset_names()))
    for each in preset_names():
        summary = _text(each).partition("\n")[0].removeprefix("# ").partition(". ")[0]
        typer.echo(f"{each:<{width}}  {summary.rstrip('.')}")


def _text(name: str) -> str:
    """A preset without the line that names its schema, which lies elsewhere for a copy."""
    _, _, text = preset_path(name).read_text(encoding="utf-8").partition("\n")
    return text
