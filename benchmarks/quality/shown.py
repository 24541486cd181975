"""Numbers and tables as the page has them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.quality.statistics import Estimate, Paired

_DIGITS = 3


def number(value: float | None, signed: bool = False) -> str:
    """Three digits after the point, as in .034; nothing for None."""
    if value is None:
        return ""
    rounded = round(value, _DIGITS) + 0.0  # no -.000
    sign = "-" if rounded < 0 else "+" if signed and rounded > 0 else ""
    text = f"{abs(rounded):.{_DIGITS}f}"
    return sign + (text[1:] if text.startswith("0.") else text)


def estimate(found: Estimate, signed: bool = False) -> str:
    """A mean and its interval, as in .034 [.017, .053]."""
    if found.low is None:
        return number(found.mean, signed)
    return f"{number(found.mean, signed)} [{number(found.low, signed)}, {number(found.high, signed)}]"


def p_value(p: float) -> str:
    """Three figures, as in .0625."""
    return f"{p:.3g}".removeprefix("0")


def wins(paired: Paired, unit: str = "") -> str:
    """In how many seeds the arm is better, and in how many as good, if any."""
    tied = f", {paired.ties} equal" if paired.ties else ""
    return f"{paired.wins} of {paired.seeds}{unit}{tied}"


def seeds(number: int) -> str:
    """So many seeds."""
    return f"{number} seed" if number == 1 else f"{number} seeds"


def count(value: float | None) -> str:
    """A whole number; nothing for None."""
    return "" if value is None else f"{value:,.0f}"


def options(chosen: Mapping[str, Any]) -> str:
    """Options and their values; floats without digits that say nothing."""
    texts = (
        f"`{name}` {value:g}" if isinstance(value, float) else f"`{name}` {value}"
        for name, value in chosen.items()
    )
    return ", ".join(texts) or "none"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table, and an empty one."""
    lines = [head, ["---"] * len(head), *rows]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def folded(title: str, lines: Sequence[str]) -> list[str]:
    """Lines that show on a click."""
    return ["<details>", f"<summary>{title}</summary>", "", *lines, "</details>", ""]
