"""`ama chat`."""

import signal
import sys
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from automixalign.system.errors import AutoMixAlignError
from automixalign.system.plain_text import printable
from pipelines.cli.options import RunFolder

if TYPE_CHECKING:
    from automixalign.inference.conversation import Conversation
    from automixalign.models.generate import Decoding

MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        min=1,
        metavar="N",
        help="The largest number of tokens of an answer. [default: evaluation.max_new_tokens of the run]",
    ),
]
Temperature = Annotated[
    float,
    typer.Option(
        "--temperature", min=0.0, metavar="T", help="0: the most likely token each time. Above: draw tokens."
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Seed of the draws.")]
_EXIT, _RESET = ("/exit", "/quit"), "/reset"


def chat(
    run: RunFolder,
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="A model of the run. [default: the one that the run chose]"),
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="A system message at the start.")
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare", metavar="MODEL", help="Let a second model of the run answer beside the first."
        ),
    ] = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
) -> None:
    """Talk to a model of a run. It answers as it does in the evaluation.

    `/reset` begins a new conversation; `/exit` or Ctrl-D ends the command, and Ctrl-C an answer. Without a
    terminal, each line of stdin is a message.

    Examples:

        ama chat runs/quickstart-20250101-120000

        ama chat runs/quickstart-20250101-120000 ama-r --system "Answer in one word."

        ama chat runs/quickstart-20250101-120000 ama-r --compare reference --max-new-tokens 200
    """
    from automixalign.inference.conversation import Conversation
    from automixalign.inference.run_model import RunModel
    from automixalign.report.run_models import best_model

    names = [model or best_model(run), *([compare] if compare else [])]
    models = [RunModel(run, name) for name in names]
    decoding = models[0].decoding(temperature, max_new_tokens)
    with Console(stderr=True).status(f"loading {' and '.join(names)}"):
        from transformers import set_seed

        for each in models:
            each.load()
        set_seed(seed)
    conversations = [Conversation(each, system) for each in models]
    _Screen(conversations, decoding).run()


class _Screen:
    """Reads messages and shows answers, on a terminal or without one."""

    def __init__(self, conversations: list["Conversation"], decoding: "Decoding") -> None:
        self.conversations, self.decoding = conversations, decoding
        self.console = Console(highlight=False, markup=False, emoji=False)
        self.errors = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self.interactive = sys.stdin.isatty() and self.console.is_terminal

    def run(self) -> None:
        """Answer messages until the last one."""
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # Ctrl-C ends an answer, not the command
        if self.interactive:
            import readline  # noqa: F401  `input` then has a history and can be edited

            names = " and ".join(each.model.name for each in self.conversations)
            self.console.print(f"{names}: /reset begins again, /exit or Ctrl-D ends", style="dim")
        for message in self._messages():
            if message in _EXIT:
                return
            if message == _RESET:
                for each in self.conversations:
                    each.reset()
                continue
            try:
                self._answer(message)
            except KeyboardInterrupt:
                self.console.print("\n(ended; the message is not part of the conversation)", style="dim")
            except AutoMixAlignError as error:
                if not self.interactive:
                    raise
                self.errors.print(Text.assemble(("error:", "red"), f" {error}; {_RESET} begins again"))

    def _messages(self) -> Iterator[str]:
        try:
            while True:
                message = input("> " if self.interactive else "").strip()
                if message:
                    yield message
        except (EOFError, KeyboardInterrupt):
            if self.interactive:
                self.console.print()

    def _answer(self, message: str) -> None:
        if len(self.conversations) == 1:
            answers = [self.conversations[0].say(message, self.decoding, self._write)]
            self._write("\n")
        elif self.interactive:
            with Live(console=self.console, auto_refresh=False) as live:
                texts = [""] * len(self.conversations)

                def show(number: int, piece: str) -> None:
                    texts[number] += piece
                    live.update(self._side_by_side(texts), refresh=True)

                answers = [
                    each.say(message, self.decoding, partial(show, number))
                    for number, each in enumerate(self.conversations)
                ]
        else:
            answers = [each.say(message, self.decoding, lambda _: None) for each in self.conversations]
            for each, answer in zip(self.conversations, answers, strict=True):
                self._write(f"{each.model.name}: {answer.text}\n")
        for each, answer in zip(self.conversations, answers, strict=True):
            if not answer.complete:
                limit = f"cut at {self.decoding.max_new_tokens} tokens or the end of the model's positions"
                self.errors.print(f"({each.model.name}: {limit}; see --max-new-tokens)", style="dim")

    def _write(self, text: str) -> None:
        sys.stdout.write(printable(text))
        sys.stdout.flush()

    def _side_by_side(self, texts: list[str]) -> Table:
        table = Table(expand=True, box=None, padding=(0, 1))
        for each in self.conversations:
            table.add_column(each.model.name, ratio=1, overflow="fold")
        table.add_row(*(Text(printable(text)) for text in texts))
        return table
