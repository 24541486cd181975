"""What the terminal shows of a run: one line a step, then the leaderboard and where to look."""

import time
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table

from automixalign.config.experiment import Experiment
from automixalign.config.file import read_yaml
from automixalign.report import leaderboard, run_folder, runs
from automixalign.report.run_folder import LEADERBOARD
from automixalign.steps.events import stage_title
from automixalign.storage import files
from automixalign.system.plain_text import printable
from pipelines.local.run import KFP_LOG, StepFailedError
from pipelines.local.sending import STORE

REGISTRATION, PUBLICATION = "registration.json", "publication.json"
SHOWN = {"excess": "excess", "accuracy": "accuracy", "pass_rate": "pass rate"}
"""The metrics that fit a terminal of 80 columns, and their heads there; the page has all."""

_MARK = {"finished": "[green]✓[/]", "failed": "[red]✗[/]", "cached": "[green]✓[/]"}


class Progress:
    """The steps of a run as they start, work and finish; on a plain stream, a line a finished step."""

    def __init__(self, console: Console, total: int) -> None:
        self.console, self.total = console, total
        self.running: dict[tuple[str, str], dict[str, Any]] = {}
        self.finished = 0
        self.started = time.time()
        self.live = Live(console=console, refresh_per_second=8, get_renderable=self._render, transient=True)

    def follow(self, events: list[dict[str, Any]]) -> None:
        """Take in new events."""
        for event in events:
            key = event["stage"], event["name"]
            if event["event"] == "started":
                self.running[key] = {"began": event["time"]}
            elif event["event"] == "progress" and key in self.running:
                self.running[key].update(event)
            elif event["event"] == "warning":
                line = f"[yellow]![/] {_text(event['message'])}"
                self.console.print(line, highlight=False, soft_wrap=True, emoji=False)
            elif event["event"] in _MARK:
                step = self.running.pop(key, {"began": event["time"]})
                self.finished += event["event"] != "failed"
                loss = f"  loss {step['loss']:.3f}" if "loss" in step else ""
                took = event["time"] - step["began"]
                title = _text(stage_title(*key))
                cost = "from cache" if event["event"] == "cached" else f"{took:7.1f} s{loss}"
                self.console.print(f"{_MARK[event['event']]} {title:<44}{cost}", highlight=False)

    def _render(self) -> RenderableType:
        grid = Table.grid(padding=(0, 2))
        for (stage, name), step in self.running.items():
            done, total = step.get("done", 0), step.get("total", 0)
            grid.add_row(
                Spinner("dots"),
                _text(stage_title(stage, name)),
                f"{time.time() - step['began']:.0f} s",
                ProgressBar(total, done, width=24) if total else "",
                f"{done}/{total}" if total else "",
                f"loss {step['loss']:.3f}" if "loss" in step else "",
            )
        clock = time.strftime("%M:%S", time.gmtime(time.time() - self.started))
        return Group(grid, f"[dim]{clock}  {self.finished} of {self.total} steps[/]")


def steps_of(experiment: Experiment) -> int:
    """How many steps the DAG of an experiment has."""
    loops = 3 * len(experiment.tasks) + 2 * len(experiment.methods) + 2 * len(experiment.merges)
    return 7 + loops + (experiment.registry is not None) + (experiment.output is not None)


def show_results(console: Console, folder: Path) -> None:
    """The leaderboard, the verdict, and the paths to look at."""
    entries = files.read_json(folder / LEADERBOARD)
    header, rows = leaderboard.table(entries, SHOWN)
    table = Table(
        title="held-out test split; best generalist or merge in bold",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("model", no_wrap=True)
    for name in header[2:]:
        view, metric = name.split()
        view = "mean" if view == "average" else view
        table.add_column(f"{view}\n{SHOWN[metric]}", justify="right", no_wrap=True)
    for model, family, *values in rows:
        cells = [f"[bold]{cell.strip('*')}[/]" if cell.startswith("**") else cell for cell in values]
        table.add_row(_text(model), *cells, style="dim" if family in ("reference", "specialist") else None)
    console.print(table)
    console.print(_text(leaderboard.verdict(entries)), highlight=False, emoji=False)
    places = {
        "leaderboard": "leaderboard.json",
        "report": runs.PAGE,
        "task weights": "plots/task_weights.png",
        "models": "models",
        "logs": run_folder.LOGS,
    }
    for what, place in places.items():
        _print(console, f"  {what:<13}{folder / place}")
    if (folder / STORE).exists():
        command = f"mlflow ui --backend-store-uri sqlite:///{(folder / STORE).resolve()}"
        _print(console, f"  {'MLflow':<13}{command}")
    _show_last_steps(console, folder)


def _show_last_steps(console: Console, folder: Path) -> None:
    """What became of the best model in the registry, and where the run was published."""
    if (folder / REGISTRATION).exists():
        made = files.read_json(folder / REGISTRATION)
        what = "the champion" if made["champion"] else f"not the champion: {'; '.join(made['reasons'])}"
        line = f"models:/{made['name']}/{made['version']} ({made['model']}), {what}"
        _print(console, f"  {'registered':<13}{line}")
    if (folder / PUBLICATION).exists():
        place = read_yaml(folder / run_folder.CONFIG)["output"]["to"]
        _print(console, f"  {'published':<13}{place}")


def show_failure(console: Console, failure: StepFailedError, folder: Path) -> None:
    """Which step failed, why, and the end of its log."""
    line = f"[red]✗ {_text(failure.step)} failed:[/] {_text(failure.error)}"
    console.print(line, highlight=False, soft_wrap=True, emoji=False)
    tail = failure.tail()
    if tail:
        console.rule(_text(f"last lines of {failure.log}"), style="dim")
        _print(console, tail)
        console.rule(style="dim")
    _print(console, f"kfp's own log: {folder / run_folder.LOGS / KFP_LOG}")


def _print(console: Console, text: str) -> None:
    """A line as it is: what it quotes is neither markup nor an order to the terminal."""
    console.print(printable(text), highlight=False, soft_wrap=True, markup=False, emoji=False)


def _text(text: str) -> str:
    """Text for the middle of markup."""
    return escape(printable(text))
