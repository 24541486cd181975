"""`ama validate`."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from automixalign.system.plain_text import byte_size, duration, printable
from pipelines.cli.options import Config, Preset, Sets, Tasks, load_experiment

if TYPE_CHECKING:
    from automixalign.preflight.estimate import Estimate
    from automixalign.preflight.full_check import FullCheck

WithEstimate = Annotated[
    bool,
    typer.Option(
        "--estimate", help="Also estimate time and memory, from a few steps of training on this device."
    ),
]


def validate(
    preset: Preset = None,
    file: Config = None,
    task: Tasks = None,
    set_: Sets = None,
    with_estimate: WithEstimate = False,
) -> None:
    """Check a configuration, and print it with all defaults.

    It reads and tokenises all data on this machine, and prints the results to stderr.

    Example:

        ama validate --preset quickstart --set training.beta=0.2
    """
    from automixalign.config.file import dump_yaml
    from automixalign.preflight.full_check import check_in_full
    from automixalign.preflight.validate import plan_experiment
    from automixalign.scoring.benchmarks.tasks import task_files
    from automixalign.steps.step import collect_warnings
    from automixalign.system.messages import logger
    from pipelines.local.attempt import WORKERS

    experiment = load_experiment(preset, file, task, set_)
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    with collect_warnings() as warnings:
        plan_experiment(experiment)
        with console.status("checking the base model and the data"):
            check = check_in_full(experiment, with_estimate, WORKERS)
    typer.echo(dump_yaml(experiment), nl=False)
    code = [
        f"benchmarks: {task.path} names code of yours, which the stage runs: {', '.join(map(str, task.code))}"
        for task in task_files(experiment.benchmarks)
        if task.code
    ]
    for line in [*_facts(check), *code]:
        console.print(printable(line), soft_wrap=True)
    if check.estimate is not None:
        _show_estimate(check.estimate, console)
    for warning in warnings:
        logger.warning("%s", warning)
    console.print("valid")


def _facts(check: "FullCheck") -> list[str]:
    """A line for each task, and one for the optimiser steps."""
    lines = []
    card = check.card or {"tasks": []}
    for task in card["tasks"]:
        sizes = ", ".join(f"{count:,} {split}" for split, count in task["pairs"].items())
        lines.append(f"task {task['name']}: {sizes} pairs")
        if count := task["long_answers"]["pairs"]:
            lines[-1] += f"; {count:,} have an answer that is too long (long_answers: {card['long_answers']})"
    for name, pairs in (check.untokenized or {}).items():
        lines.append(
            f"task {name}: {pairs:,} usable pairs; their lengths are unknown, because the base model is not on "
            "this machine: `ama data` fetches its tokenizer"
        )
    lines += [f"{source} is on a network and was not read: `ama data` reads it" for source in check.unread]
    steps = "; ".join(
        f"{each.name} {'?' if each.steps is None else format(each.steps, ',')}" for each in check.trainings
    )
    return [*lines, f"optimiser steps: {steps}"]


def _show_estimate(estimate: "Estimate", console: Console) -> None:
    table = Table(box=SIMPLE_HEAD, header_style="")
    table.add_column("estimate")
    for title in ("steps", "tokens a step", "tokens", "time"):
        table.add_column(title, justify="right")
    for each in estimate.trainings:
        table.add_row(
            each.name,
            f"{each.steps:,}",
            f"{each.tokens_per_step:,.0f}",
            f"{each.tokens:,.0f}",
            duration(each.seconds),
        )
    tokens = sum(each.tokens for each in estimate.trainings)
    table.add_row(f"all, {estimate.workers} at a time", "", "", f"{tokens:,.0f}", duration(estimate.seconds))
    console.print(table)
    for line in (
        f"measured on {estimate.device}, with random weights: {estimate.step_seconds:.3g} s for "
        f"{estimate.micro_batch} pairs of mean length; peak memory {byte_size(estimate.peak_bytes)} with the "
        f"longest {estimate.micro_batch}",
        f"calculated: {estimate.parameters:,} parameters, {estimate.trained_parameters:,} of them trained: "
        f"weights {byte_size(estimate.weights_bytes)}, gradients {byte_size(estimate.gradients_bytes)}, AdamW "
        f"{byte_size(estimate.optimiser_bytes)}",
        "not included: loading, checkpoints, scoring, generation, merges, the exchange among "
        f"processes ({estimate.processes} here), and shares of tasks that a method changes",
    ):
        console.print(line, soft_wrap=True)
