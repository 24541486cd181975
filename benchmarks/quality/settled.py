"""The page's section on the defaults: what `benchmarks.quality.defaults` measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from automixalign import files
from benchmarks.quality import shown

FILE = Path(__file__).parents[1] / "results" / "quality-defaults.json"
_VIEWS = ("worst excess", "average excess", "worst generation", "average generation")


def section(file: Path = FILE) -> list[str]:
    """The section, or nothing where it was not measured."""
    if not file.exists():
        return []
    found = files.read_json(file)
    grid = [row for row in found["rows"] if "eta" in row["options"]]
    nll = [row for row in found["rows"] if "nll_weight" in row["options"]]
    return [
        "",
        "## What the defaults were settled from",
        "",
        f"`{found['command']}`: means of the {grid[0]['seeds']} tuning seeds of `synthetic-conflict`, test",
        "split, at twice the setup's learning rate. No other result is reported of these seeds.",
        "",
        *_table(grid, ("eta", "c")),
        "",
        "The weight of the NLL term holds for the specialists, too, so that excess is counted from other",
        "specialists in each row; generations can be compared.",
        "",
        *_table(nll, ("nll_weight",)),
    ]


def _table(rows: Sequence[dict[str, Any]], options: Sequence[str]) -> list[str]:
    cells = [
        [
            f"`{row['arm']}`",
            *(f"{row['options'][name]:g}" for name in options),
            *map(shown.number, _values(row)),
        ]
        for row in rows
    ]
    return shown.table(["arm", *options, *_VIEWS], cells)


def _values(row: dict[str, Any]) -> list[float]:
    return [row[view] for view in _VIEWS]
