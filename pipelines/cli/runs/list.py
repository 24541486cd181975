"""`ama runs`."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from automixalign.system.plain_text import duration, printable

_STYLES = {"running": "cyan", "finished": "green", "failed": "red", "damaged": "red", "interrupted": "yellow"}


def runs(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="The folder that holds run folders.")
    ] = Path("runs"),
) -> None:
    """List the runs in a folder: state, age, the model that each chose, and its gap on the worst task.

    The gap is of the test split: the mean loss minus that of the task's specialist. Runs on a cluster are not
    here; `ama submit --follow RUN_ID` shows them, and their server lists them.

    Examples:

        ama runs

        ama runs /data/runs
    """
    from automixalign.system.errors import ConfigError
    from pipelines.local.watching.state import is_run_folder, read_state

    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; `ama run` writes its runs into ./runs")
    folders = [folder] if is_run_folder(folder) else sorted(filter(is_run_folder, folder.iterdir()))
    if not folders:
        raise ConfigError(f"{folder} holds no run folder; `ama run` writes its runs into ./runs")
    table = Table(box=SIMPLE_HEAD, header_style="", pad_edge=False, show_edge=False)
    for title in ("run", "state", "age", "stages", "chosen model"):
        table.add_column(title, no_wrap=title != "run", overflow="fold")
    table.add_column("worst gap", justify="right", no_wrap=True)
    states = [read_state(each) for each in folders]
    now, notes = time.time(), []
    for state in sorted(states, key=lambda state: -(state.ended or 0.0)):
        chosen = state.chosen
        table.add_row(
            printable(str(state.folder)),
            Text(state.state, _STYLES[state.state]),
            "" if state.ended is None else duration(now - state.ended),
            str(state.stages.done or ""),
            printable(chosen[0]) if chosen else "",
            f"{chosen[1]:.3f}" if chosen else "",
        )
        if state.state == "damaged":
            notes.append(f"{state.folder}: {state.note}")
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(table)
    for note in notes:
        console.print(printable(note), soft_wrap=True)
    console.print("age: since the last event; `ama status RUN` shows the stages of a run", style="dim")
