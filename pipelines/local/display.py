"""What the terminal shows of a run: a line for each stage, then the leaderboard and the results' paths."""

import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table

from automixalign.config.file import read_yaml
from automixalign.report import leaderboard, run_folder, runs
from automixalign.report.benchmark_table import benchmark_table
from automixalign.report.run_folder import LEADERBOARD
from automixalign.scoring.metrics.registry import ranked_metrics
from automixalign.steps.events import stage_title
from automixalign.steps.tracking.store import default_store, sqlite_file
from automixalign.storage import files
from automixalign.system.plain_text import duration, printable
from pipelines.local.mlflow_sender import LINK
from pipelines.local.outcome import StageFailedError
from pipelines.local.watching.stages import Stage, Stages
from pipelines.local.watching.time_left import TimeLeft

_REGISTRATION, _PUBLICATION = "registration.json", "publication.json"
_UNLIMITED = 10_000
_BAR_WIDTH, _WIDE = 16, 96
"""Of a progress bar, and the narrowest terminal that has room for it."""


def mark(console: Console, succeeded: bool) -> str:
    """The mark of what succeeded or failed, as markup, in characters that the terminal has."""
    tick, cross = "+x" if console.options.ascii_only else "✓✗"
    return f"[green]{tick}[/]" if succeeded else f"[red]{cross}[/]"


class Progress:
    """Shows the stages of a run while they work; without a terminal, one line for each finished stage.

    Args:
        console: where to print.
        total: number of stages.
        left: how long the run still takes, if anything tells.
    """

    def __init__(
        self, console: Console, total: int, left: Callable[[Stages, float], TimeLeft | None] | None = None
    ) -> None:
        self.console, self.total, self.left = console, total, left
        self.stages = Stages()
        self.finished = 0
        self.started = time.time()
        self.live = Live(console=console, refresh_per_second=8, get_renderable=self._render, transient=True)

    def show(self, events: list[dict[str, Any]]) -> None:
        """Show new events."""
        for event in events:
            if event["event"] == "warning":
                line = f"[yellow]![/] {_text(event['message'])}"
                self.console.print(line, highlight=False, soft_wrap=True, emoji=False)
            if stage := self.stages.add(event):
                succeeded = stage.state != "failed"
                self.finished += succeeded
                loss = f"  loss {stage.loss:.3f}" if stage.loss is not None else ""
                title = _text(stage_title(event["stage"], event["name"]))
                cost = "from cache" if stage.seconds is None else f"{stage.seconds:7.1f} s{loss}"
                self.console.print(f"{mark(self.console, succeeded)} {title:<44}{cost}", highlight=False)

    def finished_in(self, folder: Path) -> str:
        """How many stages have finished, and where their results are."""
        return f"{self.finished} of {self.total} stages; kept in {folder}"

    def _render(self) -> RenderableType:
        now = time.time()
        grid = Table.grid(padding=(0, 2))
        for key, stage in self.stages.running.items():
            bar = ProgressBar(stage.total, stage.done, width=_BAR_WIDTH)
            grid.add_row(
                Spinner("line" if self.console.options.ascii_only else "dots"),
                _text(stage_title(*key)),
                f"{now - stage.started:.0f} s",
                bar if stage.total and self.console.width >= _WIDE else "",
                *progress_cells(stage, now),
            )
        clock = time.strftime("%M:%S", time.gmtime(now - self.started))
        run_left = self.left(self.stages, now) if self.left else None
        line = f"{clock}  {self.finished} of {self.total} stages{'  ' if run_left else ''}{left_text(run_left)}"
        return Group(grid, f"[dim]{line}[/]")


def progress_cells(stage: Stage, now: float) -> list[str]:
    """What is done of a running stage, the time that its progress leaves, and the loss of a training."""
    left = stage.time_left(now)
    return [
        f"{stage.done:,}/{stage.total:,}" if stage.total else f"{stage.done:,} done" if stage.done else "",
        "" if left is None else f"{duration(left)} left",
        "" if stage.loss is None else f"loss {stage.loss:.3f}",
    ]


def left_text(left: TimeLeft | None) -> str:
    """`about 5 min left`; empty if nothing tells."""
    return f"{'about' if left.is_complete else 'at least'} {duration(left.seconds)} left" if left else ""


def show_results(console: Console, folder: Path) -> None:
    """Print the leaderboard, the conclusions, and the paths of the results."""
    entries = files.read_json(folder / LEADERBOARD)
    metrics = ranked_metrics()
    columns = [column for column in leaderboard.columns(entries) if metrics[column[1]].headline]
    columns.sort(key=lambda column: column[0] != "worst")  # the means are left out first if not all columns fit
    unlimited = console.options.update(max_width=_UNLIMITED)
    while (
        len(columns) > 1
        and console.measure(_table(console, entries, columns), options=unlimited).maximum > console.width
    ):
        columns.pop()
    console.print(_table(console, entries, columns))
    _show_benchmarks(console, entries)
    for sentence in leaderboard.conclusions(entries):
        console.print(_text(sentence), highlight=False, emoji=False)
    paths = {
        "leaderboard": "leaderboard.json",
        "report": runs.PAGE,
        "task weights": "plots/task_weights.png",
        "models": "models",
        "logs": run_folder.LOGS,
    }
    for title, path in paths.items():
        _print(console, f"  {title:<13}{folder / path}")
    if (folder / LINK).exists():
        _print(console, f"  {'MLflow':<13}{_mlflow_address(files.read_json(folder / LINK))}")
    _show_releases(console, folder)


def _table(console: Console, entries: list[leaderboard.Entry], columns: list[tuple[str, str]]) -> Table:
    """The leaderboard with some of its columns."""
    shown = [column for column in leaderboard.columns(entries) if column in columns]
    header, rows = leaderboard.table(entries, shown)
    dash = "-" if console.options.ascii_only else leaderboard.NOT_MEASURED
    table = Table(
        title="held-out test split; best generalist or merge in bold",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        collapse_padding=True,
    )
    table.add_column("model", no_wrap=True, vertical="bottom")
    for name in header[2:]:
        table.add_column("\n".join(name.split()), justify="right", no_wrap=True, vertical="bottom")
    for model, family, *values in rows:
        cells = [f"[bold]{cell.strip('*')}[/]" if cell.startswith("**") else cell for cell in values]
        cells = [dash if cell == leaderboard.NOT_MEASURED else cell for cell in cells]
        table.add_row(_text(model), *cells, style="dim" if family in ("reference", "specialist") else None)
    return table


def _show_benchmarks(console: Console, entries: list[leaderboard.Entry]) -> None:
    """Print the results on benchmarks if they fit; the leaderboard in Markdown has them anyway."""
    header, rows = benchmark_table(entries)
    table = Table(title="benchmarks", title_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(header[0], no_wrap=True, vertical="bottom")
    for name in header[2:]:
        table.add_column(_text(name.replace(" ", "\n", 1)), justify="right", no_wrap=True)
    sign = "+-" if console.options.ascii_only else "±"
    for model, _, *values in rows:
        table.add_row(_text(model), *(value.replace("±", sign) for value in values))
    unlimited = console.options.update(max_width=_UNLIMITED)
    if rows and console.measure(table, options=unlimited).maximum <= console.width:
        console.print(table)


def _mlflow_address(link: dict[str, str]) -> str:
    """Where to see the run: the address of a server, or the command that starts one."""
    uri = link["uri"]
    if uri == default_store():
        return f"mlflow ui (run {link['run_id']})"
    if sqlite_file(uri):
        return f"mlflow ui --backend-store-uri {shlex.quote(uri)} (run {link['run_id']})"
    return f"{uri} (run {link['run_id']})"


def _show_releases(console: Console, folder: Path) -> None:
    """Print the version in the model registry, and where the results were published."""
    if (folder / _REGISTRATION).exists():
        version = files.read_json(folder / _REGISTRATION)
        status = "the champion" if version["champion"] else f"not the champion: {'; '.join(version['reasons'])}"
        line = f"models:/{version['name']}/{version['version']} ({version['model']}), {status}"
        _print(console, f"  {'registered':<13}{line}")
    if (folder / _PUBLICATION).exists():
        output = read_yaml(folder / run_folder.CONFIG)["output"]["to"]
        _print(console, f"  {'published':<13}{output}")


def show_failure(
    console: Console, failure: StageFailedError, progress: Progress, folder: Path, command: str
) -> None:
    """Print which stage failed, why, where its log is, and how to go on.

    Args:
        console: where to print.
        failure: the stage and the reason. If it gave none, the last lines of its log are printed, too.
        progress: of the run.
        folder: the run folder.
        command: resumes the run.
    """
    line = f"{mark(console, False)} [red]{_text(failure.stage)} failed:[/] {_text(failure.reason)}"
    console.print(line, highlight=False, soft_wrap=True, emoji=False)
    for line in failure.tail():
        _print(console, f"  | {line}")
    log = {"log": failure.log} if failure.log.exists() else {}
    _print(console, _facts({**log, "finished": progress.finished_in(folder), "go on with": command}))


def interruption(progress: Progress, folder: Path, command: str) -> str:
    """What an interrupted run has kept, and how to go on: four lines at most.

    Args:
        progress: of the run.
        folder: the run folder, which does not exist if no stage could start.
        command: resumes the run.
    """
    if not run_folder.is_begun(folder):
        return printable("interrupted before the first stage; nothing is kept")
    running = progress.stages.running
    unfinished = {"unfinished": ", ".join(stage_title(*key) for key in running)}
    facts = {"finished": progress.finished_in(folder), **(unfinished if running else {})}
    return printable(f"interrupted\n{_facts({**facts, 'go on with': command})}")


def _facts(facts: Mapping[str, object]) -> str:
    return "\n".join(f"  {title:<13}{fact}" for title, fact in facts.items())


def _print(console: Console, text: str) -> None:
    """Print text without markup and without control codes that it may quote."""
    console.print(printable(text), highlight=False, soft_wrap=True, markup=False, emoji=False)


def _text(text: str) -> str:
    """Escape text for use inside markup."""
    return escape(printable(text))
