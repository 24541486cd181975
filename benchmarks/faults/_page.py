"""The fault bench's results as Markdown."""

import re
from collections import Counter
from typing import Any

_HEAD = """# What became of each fault

`python -m benchmarks.faults` brought these about; each group is a module of `benchmarks/faults/`.
"""


def page(rows: list[dict[str, Any]]) -> str:
    """A table of the groups, then one of every case."""
    count, well, seconds = Counter[str](), Counter[str](), Counter[str]()
    for row in rows:
        count[row["group"]] += 1
        well[row["group"]] += row["as expected"]
        seconds[row["group"]] += row["seconds"]
    summary = [
        f"| `{group}` | {count[group]} | {well[group]} | {seconds[group]:.0f} |" for group in sorted(count)
    ]
    summary += [f"| | {count.total()} | {well.total()} | {sum(seconds.values()):.0f} |"]
    lines = [_HEAD, "| group | faults | as expected | seconds |", "| --- | --- | --- | --- |", *summary]
    for group in sorted(count):
        lines += [f"\n## `{group}`\n", "| fault | expected | seen |", "| --- | --- | --- |"]
        for row in rows:
            if row["group"] == group:
                seen = row["seen"] if row["as expected"] else f"**not as expected:** {row['seen']}"
                lines.append(f"| {' | '.join(_cell(text) for text in (row['case'], row['expected'], seen))} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Text that means nothing in a table: what is seen quotes data."""
    plain = "".join(char if char.isprintable() else " " for char in text)
    return re.sub(r"([\\`*_{}\[\]<>|#~$&!])", r"\\\1", " ".join(plain.split()))
