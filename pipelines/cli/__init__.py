"""`ama`: the command line, one module for each command.

It reads options, prints results and computes nothing. Each command imports what it needs when it runs, so
`ama --help` is fast.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from automixalign import __version__
from automixalign.system import shortages
from automixalign.system.errors import AutoMixAlignError, Interrupted
from automixalign.system.messages import print_messages
from pipelines.cli.chat import chat
from pipelines.cli.compile import compile_pipeline
from pipelines.cli.data import data
from pipelines.cli.export import export
from pipelines.cli.generate import generate
from pipelines.cli.init import init
from pipelines.cli.presets import presets
from pipelines.cli.publish import publish
from pipelines.cli.run import run
from pipelines.cli.runs.diff import diff
from pipelines.cli.runs.list import runs
from pipelines.cli.runs.logs import logs
from pipelines.cli.runs.report import report
from pipelines.cli.runs.status import status
from pipelines.cli.runs.sync import sync
from pipelines.cli.schema import schema
from pipelines.cli.submit import submit
from pipelines.cli.validate import validate

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""AutoMixAlign: align one language model to several tasks, and compare the results of each method.

A run trains a DPO *specialist* for each task and *generalists* for all tasks (standard, uniform, AMA-R, AMA-S).
It merges the specialists, evaluates every model on held-out data and prints a leaderboard.

Examples:

    ama run --preset quickstart

    ama init --task helpful=helpful.jsonl --task harmless=harmless.jsonl

    ama validate --config my.yaml

    ama run --config my.yaml

    ama runs

    ama chat runs/quickstart-20250101-120000

    ama export runs/quickstart-20250101-120000 --to assistant
""",
)
_PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Write and check a configuration": (init, presets, data, validate, schema),
    "Run it": (run, submit, compile_pipeline),
    "Look at runs": (runs, status, logs, diff, report, sync),
    "Use a model": (chat, generate, export, publish),
}
for panel, commands in _PANELS.items():
    for command in commands:
        name = command.__name__.removesuffix("_pipeline")
        app.command(name, rich_help_panel=panel)(command)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"automixalign {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; neither a known error (exit status 2) nor a signal (130, 143) shows a traceback."""
    print_messages()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # text of any language, on terminals that cannot show it
            stream.reconfigure(errors="backslashreplace")
    errors = Console(stderr=True)
    try:
        with _interruptible(), shortages.name_shortages("ama", ""):
            app()
    except AutoMixAlignError as error:
        errors.print(Text.assemble(("error:", "red"), f" {error}"), soft_wrap=True)
        sys.exit(2)
    except Interrupted as interruption:
        errors.print(Text(interruption.message), soft_wrap=True)
        raise


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM raise `Interrupted`, so that a run ends its stages before it exits."""

    def interrupt(number: int, _: object) -> None:
        raise Interrupted(number)

    previous = {signal.SIGTERM: signal.signal(signal.SIGTERM, interrupt)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else a shell runs it in the background
        previous[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
