"""`ama run`."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from automixalign.system.errors import Interrupted
from pipelines.cli.options import (
    Config,
    NoCache,
    Preset,
    Sets,
    Tasks,
    load_experiment,
    new_run_folder,
    repeated_command,
)

Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="DIR",
        help="Run folder: a new one, or one of the same experiment to resume its run. "
        "[default: runs/NAME-DATE-TIME]",
    ),
]
RunnerName = Annotated[
    Literal["subprocess", "docker"],
    typer.Option("--runner", "-r", help="Run stages as processes, or as containers of the image AMA_IMAGE."),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        envvar="AMA_CACHE",
        metavar="DIR",
        help="Cache with the results of all runs. [default: automixalign in the user's cache folder]",
    ),
]
Retries = Annotated[
    int, typer.Option("--retries", min=0, max=10, metavar="N", help="How many times to retry a failed stage.")
]


def run(
    preset: Preset = None,
    file: Config = None,
    task: Tasks = None,
    set_: Sets = None,
    output: Output = None,
    runner: RunnerName = "subprocess",
    cache: Cache = None,
    no_cache: NoCache = False,
    retries: Retries = 0,
) -> None:
    """Run the whole DAG on this machine and print the leaderboard.

    Examples:

        ama run --preset quickstart

        ama run -p quickstart --set seed=1 --set methods.ama-r.eta=0.1 --output runs/eta

        ama run -p smollm2 -t helpful=data/helpful.jsonl -t code=s3://bucket/code/

        ama run -p quickstart --runner docker

    To resume an interrupted run, repeat the command with its --output. Ctrl-C prints that command.
    """
    from automixalign.preflight.validate import check_local_sources, check_one_machine, plan_experiment
    from automixalign.report import run_folder
    from automixalign.steps.step import collect_warnings
    from pipelines.local import display
    from pipelines.local.attempt import WORKERS
    from pipelines.local.outcome import StageFailedError
    from pipelines.local.run import Processes, Runner, run_experiment
    from pipelines.local.stage_cache import shared_cache_folder
    from pipelines.local.watching.time_left import list_stages, time_left

    experiment = load_experiment(preset, file, task, set_, no_cache=no_cache)
    check_one_machine(experiment)
    check_local_sources(experiment)
    with collect_warnings():  # the stage `validate_config` prints them
        plan_experiment(experiment)
    shared_cache = shared_cache_folder(cache) if experiment.cluster.cache else None
    stage_runner: Runner = Processes()
    if runner == "docker":
        from pipelines.local.containers import Containers

        stage_runner = Containers(experiment)
    folder = output or new_run_folder(experiment)
    command = repeated_command() if output else repeated_command("--output", str(folder))
    console, stages = Console(), len(list_stages(experiment))
    action = "resuming" if run_folder.is_begun(folder) else "results in"
    banner = f"{experiment.name}: {stages} stages, {action} {folder}"
    console.print(banner, highlight=False, soft_wrap=True, markup=False)
    progress = display.Progress(console, stages, partial(time_left, experiment, WORKERS))
    try:
        with progress.live:
            run_experiment(
                experiment,
                folder,
                on_events=progress.show,
                runner=stage_runner,
                shared_cache=shared_cache,
                retries=retries,
            )
    except StageFailedError as failure:
        display.show_failure(Console(stderr=True), failure, progress, folder, command)
        raise typer.Exit(1) from failure
    except Interrupted as interruption:
        interruption.message = display.interruption(progress, folder, command)
        raise
    display.show_results(console, folder)
