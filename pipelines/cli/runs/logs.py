"""`ama logs`."""

import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from automixalign.system.errors import ConfigError
from automixalign.system.plain_text import printable
from pipelines.cli.options import RunFolder

if TYPE_CHECKING:
    from pipelines.local.watching.state import RunState

_POLL_SECONDS = 0.3
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def _complete_stage(context: typer.Context, incomplete: str) -> list[str]:
    """The logs of the run that begin so, for the shell."""
    run = context.params.get("run")
    names = [path.stem for path in Path(run, "logs").glob("*.log")] if run else []
    return sorted(name for name in names if name.startswith(incomplete))


def logs(
    run: RunFolder,
    stage: Annotated[
        str | None,
        typer.Argument(
            metavar="[STAGE]",
            help="A stage, or the beginning of its name. [default: the one that failed, else the last one]",
            autocompletion=_complete_stage,
        ),
    ] = None,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", "-f", help="Print new lines until the run ends or Ctrl-C. Without STAGE: of all."
        ),
    ] = False,
) -> None:
    """Print the log of a stage of a run, also while it runs.

    The other logs are `kfp`, of the runner itself, and `mlflow`, of the records for MLflow. Logs of a run on a
    cluster are on its server.

    Examples:

        ama logs runs/quickstart-20250101-120000

        ama logs runs/quickstart-20250101-120000 train_generalist-ama-r --follow
    """
    from automixalign.report import run_folder
    from pipelines.local.watching.state import read_state

    folder, state = run / run_folder.LOGS, read_state(run)
    first = _last_log(folder, state) if stage is None else _find(folder, stage)
    printer = _Printer({path: path.stat().st_size for path in folder.glob("*.log") if path != first})
    while True:
        works = follow and (state := read_state(run)).state == "running"  # before reading: no line is missed
        for path in [first, *_logs(folder, state)] if follow and stage is None else [first]:
            printer.print_new(path, only_whole_lines=works)
        if not works:
            if printer.last == Path():
                printer.say(f"{first} is empty")
            return
        time.sleep(_POLL_SECONDS)


class _Printer:
    """Prints what is new in logs, under the path of each.

    Args:
        offsets: log -> the number of bytes at its beginning that are not printed.
    """

    def __init__(self, offsets: dict[Path, int]) -> None:
        self.offsets, self.last = offsets, Path()
        self.errors = Console(stderr=True, highlight=False, markup=False, emoji=False)

    def print_new(self, path: Path, only_whole_lines: bool) -> None:
        """Print the rest of a log."""
        start = self.offsets.get(path, 0)
        with path.open("rb") as log:
            log.seek(start)
            new = log.read()
        new = new[: new.rfind(b"\n") + 1] if only_whole_lines else new
        if not new:
            return
        self.offsets[path] = start + len(new)
        if path != self.last:
            self.say(f"==> {path} <==")
            self.last = path
        for line in new.decode("utf-8", errors="replace").removesuffix("\n").split("\n"):
            # A progress bar writes one line over and over; the terminal would show its last state.
            last = line.rstrip("\r").rpartition("\r")[2]
            sys.stdout.write(printable(_COLOUR.sub("", last)) + "\n")
        sys.stdout.flush()

    def say(self, text: str) -> None:
        """Print a line about the logs."""
        self.errors.print(printable(text), style="dim", soft_wrap=True)


def _logs(folder: Path, state: "RunState") -> list[Path]:
    """The logs of the stages that have begun."""
    from automixalign.steps.events import log_name

    return [path for key in state.stages if (path := folder / log_name(*key)).is_file()]


def _last_log(folder: Path, state: "RunState") -> Path:
    """The log of the stage that failed, or that began last; of the runner, if that stage has none."""
    from automixalign.steps.events import log_name
    from pipelines.local.outcome import KFP_LOG

    failed = [log_name(*key) for key, stage in state.stages.items() if stage.state == "failed"]
    for path in (*(folder / name for name in failed), *_logs(folder, state)[-1:], folder / KFP_LOG):
        if path.is_file():
            return path
    raise ConfigError(f"{state.folder} has no logs; it is {state.state}")


def _find(folder: Path, stage: str) -> Path:
    """The log of a stage: `evaluate-ama-r`, also as `evaluate [ama-r]`, or the beginning of its name.

    Raises:
        ConfigError: there is none, or there are several.
    """
    from automixalign.system.schema import did_you_mean

    name = stage.replace(" [", "-").removesuffix("]").removesuffix(".log")
    names = sorted(path.stem for path in folder.glob("*.log"))
    matches = [name] if name in names else [each for each in names if each.startswith(name)]
    if len(matches) == 1:
        return folder / f"{matches[0]}.log"
    problem = f"several logs begin with {stage!r:.80}" if matches else f"there is no log {stage!r:.80}"
    hint = "" if matches else did_you_mean(name, names)
    raise ConfigError(f"{folder}: {problem}{hint}; there are: {', '.join(matches or names) or 'none yet'}")
