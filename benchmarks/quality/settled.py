"""The page's sections on the defaults: what `benchmarks.quality.defaults` measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from automixalign.storage import files
from benchmarks.quality import shown

_VIEWS = ("worst excess", "average excess", "worst generation", "average generation")


def section(folder: Path) -> list[str]:
    """The section, or nothing where nothing was measured."""
    grids = [files.read_json(file) for file in sorted(folder.glob("*.json"))]
    if not grids:
        return []
    lines = [
        "",
        "## What the defaults were settled from",
        "",
        "Means of the tuning seeds, test split, at twice the setup's learning rate. No other result is",
        "reported of these seeds. The weight of the NLL term holds for the specialists, too, so that",
        "excess is counted from other specialists in each row; generations can be compared.",
        "",
    ]
    for found in grids:
        rows = found["rows"]
        lines += [f"### {found['setup']}, {rows[0]['seeds']} seeds", "", f"`{found['command']}`", ""]
        for options in (("eta", "c"), ("nll_weight",)):
            lines += _table([row for row in rows if options[0] in row["options"]], options)
    return lines


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
