"""`ama status`."""

import time
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from automixalign.system.errors import ConfigError
from automixalign.system.plain_text import duration, printable
from pipelines.cli.options import RunFolder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from automixalign.config.experiment import Experiment
    from pipelines.local.watching.stages import StageKey
    from pipelines.local.watching.state import RunState


def status(run: RunFolder) -> None:
    """Show the stages of a run, also while it runs: state, seconds, and the time that is left.

    Exit status: 0 if the run is running or finished, else 1. `ama submit --follow RUN_ID` shows a run on a
    cluster.

    Example:

        ama status runs/quickstart-20250101-120000
    """
    from pipelines.local import display
    from pipelines.local.attempt import WORKERS
    from pipelines.local.watching.state import read_state
    from pipelines.local.watching.time_left import list_stages, time_left

    state, now = read_state(run), time.time()
    console = Console(highlight=False, emoji=False)
    experiment = _experiment(state, console)
    planned = list_stages(experiment) if experiment else []
    _show_stages(console, state, planned, now)
    line = f"{run}: {state.state}, {state.stages.done} of {len(planned) or '?'} stages"
    if experiment and state.state == "running" and (left := time_left(experiment, WORKERS, state.stages, now)):
        line += f", {display.left_text(left)}"
    for each in [line, *(f"  {advice}" for advice in _advice(state))]:
        console.print(printable(each), soft_wrap=True, markup=False)
    if state.state not in ("running", "finished"):
        raise typer.Exit(1)


def _experiment(state: "RunState", console: Console) -> "Experiment | None":
    """The configuration of the run; None, with a message, if it cannot be read."""
    from automixalign.config.experiment import parse_experiment
    from automixalign.config.file import read_yaml
    from automixalign.report import run_folder

    path = state.folder / run_folder.CONFIG
    try:
        return parse_experiment(read_yaml(path), str(path))
    except ConfigError as error:
        message = f"the stages that are left are unknown: {error}"
        console.print(printable(message), soft_wrap=True, markup=False)
        return None


def _show_stages(console: Console, state: "RunState", planned: "Sequence[StageKey]", now: float) -> None:
    """Print a line for each stage."""
    from automixalign.steps.events import stage_title
    from pipelines.local import display

    works = state.state == "running"
    table = Table.grid(padding=(0, 2))
    for key in [*planned, *(key for key in state.stages if key not in planned)]:
        title, stage = escape(printable(stage_title(*key))), state.stages.get(key)
        if stage is None:
            table.add_row("", f"[dim]{title}[/]", "[dim]to come[/]")
        elif stage.state == "running" and works:
            cells = display.progress_cells(stage, now)
            table.add_row("", title, "[cyan]running[/]", duration(now - stage.started), *cells)
        elif stage.state == "running":
            table.add_row("", title, "[yellow]interrupted[/]")
        else:
            seconds = "" if stage.seconds is None else f"{stage.seconds:,.1f} s"
            loss = "" if stage.loss is None else f"loss {stage.loss:.3f}"
            table.add_row(display.mark(console, stage.is_done), title, stage.state, seconds, "", "", loss)
    console.print(table)


def _advice(state: "RunState") -> list[str]:
    """What went wrong, and what to do next."""
    from automixalign.report import run_folder, runs
    from automixalign.steps.events import stage_title

    if state.state == "running":
        return [state.note, f"ama logs {state.folder} --follow"]
    if state.state == "finished":
        return [f"ama chat {state.folder}", str(state.folder / runs.PAGE)]
    errors = [
        f"{stage_title(*key)}: {stage.error}" for key, stage in state.stages.items() if stage.state == "failed"
    ]
    if state.note:
        errors.append(state.note)
    logs = [f"ama logs {state.folder}"] if (state.folder / run_folder.LOGS).is_dir() else []
    return [*errors, *logs, f"to go on, repeat the command of the run with --output {state.folder}"]
