"""Arguments, tables and JSON of the benchmarks, in one form for all of them."""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from automixalign.storage import files


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the option `--json FILE`; shows a module's docstring as its help."""
    cli = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    return cli


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; columns after the first are aligned to the right."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*map(str, row))
    Console(width=150).print(table)


def write(options: argparse.Namespace, results: Any) -> None:
    """Write results as JSON if the command line names a file."""
    if options.json:
        files.write_json(options.json, results)


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    """The median duration of some calls, after one that is not counted."""
    durations = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        call()
        durations.append(time.perf_counter() - started)
    return statistics.median(durations[1:])
