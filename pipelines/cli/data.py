"""`ama data`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from automixalign.system.plain_text import printable
from pipelines.cli.options import Config, Preset, Sets, load_experiment

if TYPE_CHECKING:
    from automixalign.preflight.data_view import DataView, ShownPair

_BAR_WIDTH = 40

Selected = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        "-t",
        metavar="NAME[=PATH]",
        help="Show this task alone. With a path, add it or change its data first. Repeatable.",
    ),
]
Rows = Annotated[
    int, typer.Option("--rows", "-n", min=0, max=1000, metavar="N", help="Training pairs to show of each task.")
]


def data(
    preset: Preset = None, file: Config = None, task: Selected = None, set_: Sets = None, rows: Rows = 3
) -> None:
    """Show the data as the run will use it: what is read, dropped and cut, and pairs as the model sees them.

    It reads every source, also in S3 and on hubs. Of the base model it reads only the tokenizer.

    Examples:

        ama data --config my.yaml --task helpful --rows 5

        ama data -p smollm2 -t helpful=helpful.jsonl --set max_length=512
    """
    options = task or []
    names = [option.partition("=")[0] for option in options]
    experiment = load_experiment(preset, file, [option for option in options if "=" in option], set_)
    from automixalign.preflight.data_view import view_data
    from automixalign.steps.step import collect_warnings

    with collect_warnings() as warnings, Console(stderr=True).status("reading and tokenising the data"):
        view = view_data(experiment, names, rows)
    _Screen(Console(highlight=False, markup=False, emoji=False)).show(view, warnings)


class _Screen:
    """Draws a view of the data, with ASCII characters alone where the terminal has no others."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar, self.line_end = ("#", "\\n") if console.options.ascii_only else ("█", "↵")

    def show(self, view: "DataView", warnings: Sequence[str]) -> None:
        for task in view.card["tasks"]:
            self._line(Text(task["name"], style="bold"))
            self._table(task)
            self._lengths(task, view.card)
            if pairs := view.pairs[task["name"]]:
                self._line(
                    f"  {len(pairs)} of {task['pairs']['train']:,} training pairs as the model sees them: it "
                    f"reads the prompt, and is trained on chosen and rejected; {self.line_end} ends a line\n"
                )
            for pair in pairs:
                self._pair(pair)
        for warning in warnings:
            self._line(Text.assemble(("warning:", "yellow"), f" {printable(warning)}"))

    def _line(self, text: Text | str) -> None:
        self.console.print(text, soft_wrap=True)

    def _table(self, task: Mapping[str, Any]) -> None:
        """Sources as columns, and what became of their rows as lines."""
        sources = task["sources"]
        table = Table(box=SIMPLE_HEAD, header_style="")
        table.add_column("rows")
        for source in sources:
            table.add_column(printable(source["path"]), justify="right", overflow="fold")
        if len(sources) > 1:
            table.add_column("all", justify="right")
        total = {"rows": task["rows"], "pairs": task["pairs"]}
        columns = [*sources, total] if len(sources) > 1 else sources
        for reason in dict.fromkeys(reason for source in sources for reason in source["rows"]):
            title = "read" if reason == "read" else f"dropped: {reason}"
            table.add_row(title, *(f"{column['rows'].get(reason, 0):,}" for column in columns))
        for split in task["pairs"]:
            table.add_row(f"used: {split}", *(f"{column['pairs'][split]:,}" for column in columns))
        self.console.print(table)
        for source in sources:
            for name, reason in source["passed_over"].items():
                self._line(f"  not read: {printable(name)} ({printable(reason)})")

    def _lengths(self, task: Mapping[str, Any], card: Mapping[str, Any]) -> None:
        """A histogram; bins beside empty ones at the ends are left out."""
        width, bins, limit = task["lengths"]["width"], task["lengths"]["pairs"], card["max_length"]
        self._line("  tokens of prompt and longer answer, before any cut")
        filled = [number for number, pairs in enumerate(bins) if pairs]
        longest = max(bins)
        for number in range(filled[0], filled[-1] + 1):
            first, last = number * width + 1, min((number + 1) * width, limit)
            if first > limit and not bins[number]:
                continue
            label = f"> {limit}" if number == len(bins) - 1 else f"{first}-{last}"
            bar = self.bar * -(-_BAR_WIDTH * bins[number] // longest)
            self._line(f"  {label:>13} {bar} {bins[number]:,}".rstrip())
        long = task["long_answers"]
        self._line(
            f"  answers that end after max_length={limit}: {long['chosen']:,} chosen, "
            f"{long['rejected']:,} rejected, in {long['pairs']:,} pairs (long_answers: {card['long_answers']})"
        )
        if task["swapped"]:
            self._line(f"  label_noise swaps the sides of {task['swapped']:,} training pairs")
        self._line("")

    def _pair(self, pair: "ShownPair") -> None:
        swapped = ", sides swapped by label_noise" if pair.swapped else ""
        self._line(f"  pair {pair.pair_id}{swapped}")
        for name, text, style in (
            ("prompt", pair.prompt, "dim"),
            ("chosen", pair.chosen, "green"),
            ("rejected", pair.rejected, "red"),
        ):
            for line in self._lines(printable(text)):
                label = Text(f"  {name:<8} | ")
                self._line(label.append(line, style=style))
                name = ""  # noqa: PLW2901
        self._line("")

    def _lines(self, text: str) -> Iterator[str]:
        """The lines of a text, each with a mark at its end; an answer that is empty is one empty line."""
        *ended, rest = text.split("\n")
        yield from (f"{line}{self.line_end}" for line in ended)
        if rest or not ended:
            yield rest
