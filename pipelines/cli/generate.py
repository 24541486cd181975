"""`ama generate`."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import track

from automixalign.system.errors import ConfigError
from pipelines.cli.chat import MaxNewTokens, Seed, Temperature
from pipelines.cli.options import RunFolder


def generate(
    run: RunFolder,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model of the run.")],
    file: Annotated[
        Path,
        typer.Option(
            "--input",
            "-i",
            metavar="FILE",
            help="JSONL, JSON, CSV, Parquet: rows with `prompt`, text or messages. Or .txt: a prompt a line.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.jsonl", help="File of the answers. [default: stdout]"),
    ] = None,
    text: Annotated[
        Literal["message", "plain"] | None,
        typer.Option(
            "--text",
            help="What a prompt of text is: a user's `message` for the chat template, or `plain` text that the "
            "model continues. [default: as in the run's data]",
        ),
    ] = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            min=1,
            metavar="N",
            help="Prompts that are answered together. [default: evaluation.batch_size of the run]",
        ),
    ] = None,
) -> None:
    """Let a model of a run answer the prompts of a file. It answers as it does in the evaluation.

    Each row is written as it was read, with its answer as `output`.

    Examples:

        ama generate runs/quickstart-20250101-120000 ama-r --input prompts.jsonl --output answers.jsonl

        ama generate runs/quickstart-20250101-120000 reference --input questions.txt --temperature 0.7 --seed 1
    """
    from automixalign.data.prompts import OUTPUT, read_prompts
    from automixalign.inference.run_model import RunModel
    from automixalign.storage import files

    if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
        raise ConfigError(f"--output {output}: it must be a file in a folder that exists")
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    chosen = RunModel(run, model)
    prompts = read_prompts(file, as_messages=chosen.speaks if text is None else text == "message")
    if any(isinstance(each.prompt, str) for each in prompts):
        console.print("prompts of text are continued as they are, without a chat template", style="dim")
    ids = [chosen.ids(each.prompt, each.options) for each in prompts]
    decoding = chosen.decoding(temperature, max_new_tokens, batch_size)
    with console.status(f"loading {model}"):
        from transformers import set_seed

        chosen.load()
        set_seed(seed)

    def show(batches: Iterable[list[int]], total: int) -> Iterable[list[int]]:
        title = f"{len(prompts):,} prompts in batches"
        return track(batches, title, total, console=console, transient=True)

    answers = chosen.answers(ids, decoding, show)
    rows = [each.row | {OUTPUT: answer.text} for each, answer in zip(prompts, answers, strict=True)]
    if output is None:
        for row in rows:
            sys.stdout.write(f"{json.dumps(row, ensure_ascii=False, default=str)}\n")
    else:
        files.write_jsonl(output, rows)
    if cut := sum(not answer.complete for answer in answers):
        console.print(
            f"{cut} of {len(answers)} answers are cut at {decoding.max_new_tokens} tokens or the end of the "
            "model's positions (--max-new-tokens)"
        )
