"""`ama export`."""

from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from automixalign.system.plain_text import printable
from pipelines.cli.options import RunFolder


def export(
    folder: RunFolder,
    to: Annotated[
        str,
        typer.Option("--to", metavar="DIR|s3://…|hf://ORG/NAME", help="Where to; it must be new or empty."),
    ],
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="A model of the run. [default: the one that the run chose]"),
    ] = None,
    merged: Annotated[
        bool | None,
        typer.Option(
            "--merged/--adapter",
            help="A full model, or the LoRA adapter alone. By default an adapter, if its base is on the hub.",
            show_default=False,
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace an earlier export, or the files of the repository.")
    ] = False,
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public",
            help="Who sees the repository on the hub; by default, it is private.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Hand a model on: copy it with a model card to a folder, to S3 or to the Hugging Face hub.

    Others load it with transformers or peft alone. The hub's token comes from HF_TOKEN or `hf auth login`.

    Examples:

        ama export runs/quickstart-20250101-120000 --to assistant

        ama export runs/quickstart-20250101-120000 ama-s --to s3://bucket/assistant --merged

        ama export runs/quickstart-20250101-120000 ama-s --to hf://my-org/assistant --public
    """
    from automixalign.release.export import export_model

    errors = Console(stderr=True, highlight=False, markup=False, emoji=False)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=errors, transient=True) as progress:
        bar = progress.add_task("preparing", total=None)

        def started(size: int) -> Callable[[int], None]:
            if not size:  # the hub's client draws bars of its own
                progress.stop()
            progress.update(bar, description="copying", total=size)
            return lambda count: progress.advance(bar, count)

        done = export_model(
            folder,
            to,
            model,
            form=None if merged is None else "full" if merged else "adapter",
            replace=replace,
            private=private,
            started=started,
        )
    for note in done.notes:
        errors.print(f"note: {printable(note)}", soft_wrap=True)
    what = "an adapter" if done.form == "adapter" else "a full model"
    typer.echo(
        f"{done.model}, {what}: {done.files} files, {done.size / 1e6:,.1f} MB, in {done.to}; load it by:"
    )
    for line in done.load:
        typer.echo(f"  {line}")
