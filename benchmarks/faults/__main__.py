"""The fault bench: bring every fault about, and print what came of it.

    python -m benchmarks.faults [GROUP ...] [--only TEXT] [--json FILE [--page FILE]]

Each module of this folder that has `CASES` is a group; with no GROUP named, all of them run. Exit status 1 if a
fault did not end as expected.
"""

import argparse
import importlib
import pkgutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from automixalign.storage import files
from benchmarks import faults
from benchmarks.faults._page import page
from benchmarks.faults.case import Case, UnexpectedError

_FRAME = ("case",)
"""Modules that are no group."""


def groups() -> list[str]:
    """The names of all groups."""
    names = [module.name for module in pkgutil.iter_modules(faults.__path__)]
    return [name for name in names if not name.startswith("_") and name not in _FRAME]


def cases_of(group: str) -> list[Case]:
    """A group's cases."""
    return list(importlib.import_module(f"benchmarks.faults.{group}").CASES)


def outcome(case: Case) -> dict[str, Any]:
    """Run one case in a folder of its own."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ama-fault-") as folder:
        try:
            seen, as_expected = case.run(Path(folder)), True
        except UnexpectedError as error:
            seen, as_expected = str(error), False
        except Exception as error:  # whatever a case ends in, the others are still to be seen
            seen, as_expected = f"{type(error).__name__}: {error}", False
    return {
        "group": case.group,
        "case": case.name,
        "expected": case.expected,
        "seen": seen.replace(f"{folder}/", "").replace(folder, "the folder"),
        "as expected": as_expected,
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> int:
    """Run the cases, print the table, write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name holds it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="results; those of other groups stay in it")
    parser.add_argument("--page", type=Path, metavar="FILE", help="the file of --json as Markdown")
    options = parser.parse_args()
    known = groups()
    if unknown := set(options.groups) - set(known):
        parser.error(f"there is no group {', '.join(unknown)}; there are: {', '.join(known)}")
    chosen = options.groups or known
    cases = [case for group in chosen for case in cases_of(group) if options.only in case.name]
    errors = Console(stderr=True)
    rows = [outcome(case) for case in track(cases, "faults", console=errors)]
    table = Table(*("case", "expected", "seen", "s"), show_lines=False)
    for row in rows:
        style = None if row["as expected"] else "bold red"
        cells = (f"{row['group']}: {row['case']}", row["expected"], row["seen"], f"{row['seconds']:.1f}")
        table.add_row(*map(escape, cells), style=style)  # what is seen quotes data
    console = Console(width=160)
    console.print(table)
    failed = sum(not row["as expected"] for row in rows)
    console.print(f"{len(rows) - failed} of {len(rows)} faults ended as expected")
    if options.json:
        kept = files.read_json(options.json) if options.json.exists() else []
        rows = [row for row in kept if row["group"] not in chosen] + rows
        files.write_json(options.json, rows)
    if options.page:
        files.write_text(options.page, page(rows))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
