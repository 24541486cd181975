"""`ama diff`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from automixalign.system.plain_text import printable
from pipelines.cli.options import complete_run

if TYPE_CHECKING:
    from automixalign.report.leaderboard import Entry

_Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", autocompletion=complete_run)]
_MAX_VALUE = 60


def diff(first: _Run, second: _Run) -> None:
    """Show which settings and results of two runs differ.

    A result is that of a model on its worst task of the test split. Results of different data or base models do
    not compare.

    Example:

        ama diff runs/seed-0 runs/seed-1
    """
    from automixalign.config.file import read_yaml
    from automixalign.report import run_folder, runs
    from automixalign.storage import files
    from automixalign.system.flatten import flatten
    from pipelines.local.watching.state import read_state

    console = Console(highlight=False, markup=False, emoji=False)
    states = [read_state(first), read_state(second)]
    settings = [_named(read_yaml(state.folder / run_folder.CONFIG)) for state in states]
    facts = [files.read_json(path) if (path := state.folder / runs.FACTS).is_file() else {} for state in states]
    software = [{"commit": each.get("commit"), "versions": each.get("versions")} for each in facts]
    columns = [dict(flatten(each)) | dict(flatten(made)) for each, made in zip(settings, software, strict=True)]
    rows = [
        [key, *(_text(column[key]) if key in column else "" for column in columns)]
        for key in dict.fromkeys(key for column in columns for key in column)
        if columns[0].get(key) != columns[1].get(key)
    ]
    titles = [str(state.folder) for state in states]
    _print(console, ["setting", *titles], rows or [["no setting differs", "", ""]])
    for state in states:
        if not state.entries:
            console.print(printable(f"{state.folder} has no results: it is {state.state}"), soft_wrap=True)
    if not all(state.entries for state in states):
        return
    _show_results(console, titles, [state.entries for state in states])


def _show_results(console: Console, titles: list[str], boards: "list[list[Entry]]") -> None:
    """Print a line for each model and metric whose values on the worst task differ."""
    from automixalign.report.leaderboard import NOT_MEASURED
    from automixalign.scoring.metrics.registry import ranked_metrics

    dash = "-" if console.options.ascii_only else NOT_MEASURED
    worst = [{entry["model"]: entry["worst"] for entry in board} for board in boards]
    models = list(dict.fromkeys(model for board in worst for model in board))
    rows = []
    for name, metric in ranked_metrics().items():
        for model in models:
            values = [board.get(model, {}).get(name) for board in worst]
            cells = [dash if value is None else metric.show(value) for value in values]
            change = "" if None in values else f"{values[1] - values[0]:+.3f}"
            if cells[0] != cells[1]:
                rows.append([f"worst {metric.title}", model, *cells, change])
    if not rows:
        console.print("the results are equal, as shown")
        return
    _print(console, ["result", "model", *titles, "change"], rows)


def _named(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with the entries of lists under their names, so that another order is no difference."""
    from automixalign.system.schema import NAMED_LISTS, element_names

    named = dict(settings)
    for key in NAMED_LISTS:
        entries = settings.get(key)
        if isinstance(entries, list) and all(names := element_names(entries)):
            named[key] = dict(zip(names, entries, strict=True))
    return named


def _text(value: Any) -> str:
    text = printable(str(value))
    return text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]}..."


def _print(console: Console, titles: list[str], rows: list[list[str]]) -> None:
    table = Table(box=SIMPLE_HEAD, header_style="", pad_edge=False, show_edge=False)
    for title in titles:
        table.add_column(printable(title), overflow="fold")
    for row in rows:
        table.add_row(*map(printable, row))
    console.print(table)
