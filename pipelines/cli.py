"""`ama`: the command line."""

import os
import signal
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

from automixalign import __version__
from automixalign.report.run_folder import LEADERBOARD
from automixalign.system import shortages
from automixalign.system.errors import AutoMixAlignError, ConfigError
from automixalign.system.messages import print_messages

if TYPE_CHECKING:
    from automixalign.config.experiment import Experiment

PRESETS = resources.files("pipelines") / "presets"

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""AutoMixAlign: align one language model to several tasks, and compare how.

A run trains a DPO *specialist* for each task, then *generalists* for all tasks (standard, uniform, AMA-R,
AMA-S), merges the specialists, measures everything on held-out data and prints a leaderboard.

Examples:

    ama run --preset quickstart

    ama run --preset smollm2 --task helpful=helpful.jsonl --task harmless=harmless.jsonl

    ama validate --config my.yaml
""",
)

Preset = Annotated[
    str | None,
    typer.Option("--preset", "-p", help="A configuration that comes with the project.", metavar="NAME"),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="A configuration of your own (YAML).", metavar="FILE"),
]
Task = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        "-t",
        metavar="NAME=PATH",
        help="Add a task, or point one at other data: JSONL, Parquet, folder, s3:// or hub id. Repeat it.",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="KEY=VALUE",
        help="Change a key: `training.beta=0.2`, `methods.2.eta=0.1`. Repeat it.",
    ),
]


def load(
    preset: str | None, file: Path | None, tasks: list[str] | None, sets: list[str] | None
) -> "Experiment":
    """The checked experiment of the command line's options.

    Raises:
        ConfigError: it cannot be run.
    """
    from automixalign.config.experiment import parse_experiment
    from automixalign.config.file import override, read_yaml, set_task
    from automixalign.preflight.verifiers import check_verifiers

    if (preset is None) == (file is None):
        raise ConfigError(f"give one of --preset NAME and --config FILE; presets: {', '.join(preset_names())}")
    if preset is not None:
        if preset not in preset_names():
            raise ConfigError(f"--preset {preset}: there are: {', '.join(preset_names())}")
        file = Path(str(PRESETS / f"{preset}.yaml"))
    assert file is not None  # noqa: S101  one of both was given
    data = read_yaml(file)
    for option in tasks or []:
        name, source = _key_value("--task", option)
        set_task(data, name, source)
    for option in sets or []:
        key, text = _key_value("--set", option)
        override(data, key, _value(key, text))
    experiment = parse_experiment(data, f"--preset {preset}" if preset else str(file))
    check_verifiers(experiment)
    return experiment


def preset_names() -> list[str]:
    """The presets that come with the project."""
    return sorted(Path(entry.name).stem for entry in PRESETS.iterdir() if entry.name.endswith(".yaml"))


def _key_value(option: str, text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise ConfigError(f"{option} {text:.80}: must be of the form KEY=VALUE")
    return key, value


def _value(key: str, text: str) -> Any:
    from automixalign.config.file import parse_yaml

    return parse_yaml(text, f"--set {key:.80}: {text!r:.80}")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"automixalign {__version__}")
        raise typer.Exit


@app.command()
def run(
    preset: Preset = None,
    file: Config = None,
    task: Task = None,
    set_: Set = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Run folder: a new one, or that of the same experiment, whose run then goes on. "
            "[default: runs/NAME-DATE-TIME]",
        ),
    ] = None,
    runner: Annotated[
        Literal["subprocess", "docker"],
        typer.Option("--runner", "-r", help="What steps are: processes, or containers of the image AMA_IMAGE."),
    ] = "subprocess",
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache",
            envvar="AMA_CACHE",
            metavar="DIR",
            help="Knows what the steps of all runs made. [default: automixalign in the user's cache folder]",
        ),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Take nothing from other runs: --set cluster.cache=false.")
    ] = False,
    retries: Annotated[
        int,
        typer.Option("--retries", min=0, max=10, metavar="N", help="Try a failed step so often again."),
    ] = 0,
) -> None:
    """Run the whole DAG on this machine and print the leaderboard.

    Examples:

        ama run --preset quickstart

        ama run -p quickstart --set seed=1 --set methods.2.eta=0.1 --output runs/eta

        ama run -p smollm2 -t helpful=data/helpful.jsonl -t code=s3://bucket/code/

        ama run -p quickstart --runner docker

    A run that was ended, by whatever, goes on when the same command names the same --output.
    """
    from pipelines.local.ahead import Ahead

    # A run that has ended well has most likely nothing left to do.
    has_ended = output is not None and os.path.exists(output / LEADERBOARD)  # noqa: PTH110  it may be no name at all
    with Ahead(warmly=runner == "subprocess" and not has_ended) as process:
        from automixalign.preflight.validate import check_local_sources, check_one_machine, plan_experiment
        from automixalign.report import run_folder
        from pipelines.local import display, shared_cache
        from pipelines.local import run as local_run

        console = Console()
        experiment = load(preset, file, task, [*(set_ or []), *_caching(no_cache)])
        check_one_machine(experiment)
        check_local_sources(experiment)
        plan_experiment(experiment)
        shared = shared_cache.folder(cache) if experiment.cluster.cache else None
        steps_are: local_run.Runner = local_run.Processes()
        if runner == "docker":
            from pipelines.local.containers import Containers

            steps_are = Containers(experiment)
        folder = output or Path("runs") / f"{experiment.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        steps = display.steps_of(experiment)
        progress = display.Progress(console, steps)
        goes_on = ", where a run goes on" if run_folder.is_begun(folder) else ""
        said = f"{experiment.name}: {steps} steps, results in {folder}{goes_on}"
        console.print(said, highlight=False, soft_wrap=True, markup=False)
        try:
            with progress.live:
                local_run.run(experiment, folder, progress.follow, steps_are, shared, retries, process)
        except local_run.StepFailedError as failure:
            display.show_failure(Console(stderr=True), failure, folder)
            raise typer.Exit(1) from failure
        display.show_results(console, folder)


def _caching(no_cache: bool) -> list[str]:
    return ["cluster.cache=false"] if no_cache else []


@app.command()
def validate(preset: Preset = None, file: Config = None, task: Task = None, set_: Set = None) -> None:
    """Check a configuration and its sources; print it with every default written out.

    Example:

        ama validate --preset quickstart --set training.beta=0.2
    """
    from automixalign.config.file import dump_yaml
    from automixalign.preflight.validate import check_local_sources, plan_experiment

    experiment = load(preset, file, task, set_)
    check_local_sources(experiment)
    plan_experiment(experiment)
    typer.echo(dump_yaml(experiment), nl=False)


@app.command()
def sync(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The run folder.", exists=True)],
) -> None:
    """Send to MLflow what it could not take while the run went on.

    Example:

        ama sync runs/quickstart-20250101-120000
    """
    from automixalign.steps.tracking.send import send_waiting
    from automixalign.steps.tracking.spool import Spool
    from pipelines.local.sending import spool_folder

    if not spool_folder(folder).is_dir():
        raise ConfigError(f"{folder}: is no run folder of `ama run`")
    spool = Spool(spool_folder(folder))
    waiting = len(spool.waiting())
    left = send_waiting(spool)
    typer.echo(f"sent {waiting - len(spool.waiting())} of {waiting} steps")
    if left:
        raise ConfigError(f"MLflow does not take the rest: {left}")


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="One run folder, or several.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="With several: where the page goes."),
    ] = None,
    baseline: Annotated[
        str, typer.Option("--baseline", "-b", metavar="NAME", help="With several: the model to compare with.")
    ] = "uniform",
) -> None:
    """Write a run's report again, or one page that compares runs of several seeds.

    Examples:

        ama report runs/quickstart-20250101-120000

        ama report runs/seed-0 runs/seed-1 runs/seed-2 --output seeds.html --baseline standard
    """
    from automixalign.report import comparison, runs
    from pipelines.local.outputs import training_costs

    if (len(folders) > 1) != (output is not None):
        raise ConfigError("report: --output FILE goes with several run folders, and only with them")
    if output is None:
        output = runs.rebuild(folders[0], training_costs(folders[0]))
    else:
        comparison.write_comparison(folders, output, baseline)
    typer.echo(output)


@app.command()
def submit(
    preset: Preset = None,
    file: Config = None,
    task: Task = None,
    set_: Set = None,
    host: Annotated[
        str | None,
        typer.Option(
            "--host",
            envvar="KF_PIPELINES_ENDPOINT",
            metavar="URL",
            help="The server. [default: the pod's cluster, else the kubeconfig's]",
        ),
    ] = None,
    experiment_name: Annotated[
        str,
        typer.Option(
            "--experiment",
            envvar="KF_PIPELINES_DEFAULT_EXPERIMENT_NAME",
            metavar="NAME",
            help="The server's group of runs; made if need be.",
        ),
    ] = "automixalign",
    run_name: Annotated[
        str | None, typer.Option("--run-name", metavar="NAME", help="[default: NAME-DATE-TIME]")
    ] = None,
    pipeline_name: Annotated[
        str, typer.Option("--pipeline-name", metavar="NAME", help="The pipeline whose versions are uploaded.")
    ] = "automixalign",
    namespace: Annotated[
        str | None,
        typer.Option("--namespace", "-n", metavar="NAME", help="Yours, where the server has several users."),
    ] = None,
    service_account: Annotated[
        str | None, typer.Option("--service-account", metavar="NAME", help="The pods' account.")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            envvar="KF_PIPELINES_SA_TOKEN_PATH",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            readable=True,
            help="Holds a bearer token, and is read again for every request. A token that does not change "
            "can stand in the environment variable AMA_KFP_TOKEN instead.",
        ),
    ] = None,
    ssl_ca_cert: Annotated[
        Path | None,
        typer.Option("--ssl-ca-cert", metavar="FILE", exists=True, dir_okay=False, help="Whom to trust, PEM."),
    ] = None,
    client_cert: Annotated[
        Path | None,
        typer.Option("--client-cert", metavar="FILE", exists=True, dir_okay=False, help="Your own, PEM."),
    ] = None,
    client_key: Annotated[
        Path | None,
        typer.Option("--client-key", metavar="FILE", exists=True, dir_okay=False, help="Its key, PEM."),
    ] = None,
    kube_context: Annotated[
        str | None, typer.Option("--kube-context", metavar="NAME", help="Of the kubeconfig.")
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Compute every step: --set cluster.cache=false.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Start the run and leave it to itself.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent; send nothing.")] = False,
    poll: Annotated[
        float, typer.Option("--poll", metavar="SECONDS", min=0.01, help="Between two looks at the run.")
    ] = 5.0,
) -> None:
    """Run an experiment on Kubeflow Pipelines, follow it, and end with its status.

    The pipeline is uploaded unless the server has the same version already. Ctrl-C ends the following, not
    the run. Exit status: 0 the run succeeded, 1 it failed or was cancelled, 2 it could not be made or followed.

    Examples:

        ama submit --config my.yaml --host https://kubeflow.example/pipeline --namespace me --token-file token

        ama submit --preset quickstart --host http://localhost:8888 --dry-run
    """
    from pipelines.dag import compiling
    from pipelines.submit import terminal
    from pipelines.submit.reachable import check_reachable
    from pipelines.submit.server import Access, Server
    from pipelines.submit.submission import Submission

    experiment = load(preset, file, task, [*(set_ or []), *_caching(no_cache)])
    check_reachable(experiment)
    access = Access(host, namespace, token_file, ssl_ca_cert, client_cert, client_key, kube_context)
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "pipeline.yaml"
        compiling.write_pipeline(experiment, package)
        _warn_of_a_tag()
        name = run_name or f"{experiment.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        submission = Submission(experiment, name, experiment_name, pipeline_name, service_account, package)
        if dry_run:
            terminal.show_dry_run(console, submission, access)
            return
        status = terminal.send_and_follow(console, Server(access), submission, None if detach else poll)
    raise typer.Exit(status)


@app.command("compile")
def compile_(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.yaml", help="Where to write it.")],
    preset: Preset = None,
    file: Config = None,
    task: Task = None,
    set_: Set = None,
) -> None:
    """Write an experiment's pipeline as KFP's IR YAML, to upload to Kubeflow Pipelines.

    Its one parameter, `config`, has the experiment as its default. What each step asks of the cluster is the
    configuration's `cluster`; the containers' image is read from the environment variable AMA_IMAGE.

    Example:

        AMA_IMAGE=registry/automixalign@sha256:... ama compile --config my.yaml --output my-pipeline.yaml
    """
    from pipelines.dag import compiling

    if output.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--output {output}: the name must end in .yaml")
    experiment = load(preset, file, task, set_)
    try:
        compiling.write_pipeline(experiment, output)
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written: {error}") from error
    _warn_of_a_tag()


def _warn_of_a_tag() -> None:
    from components.image import IMAGE, is_pinned

    if not is_pinned(IMAGE):
        message = (
            f"the image {IMAGE} is named by a tag, behind which another image may come to stand while a run "
            "goes on: name it by digest (AMA_IMAGE=registry/name@sha256:...)"
        )
        Console(stderr=True).print(Text.assemble(("warning:", "yellow"), f" {message}"), soft_wrap=True)


def main() -> None:
    """Run the command line; a known error is one message and exit status 2, not a traceback."""
    # Ended from outside, leave by the same door as Ctrl-C: a run ends its steps on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    print_messages()
    try:
        with shortages.name_shortages("ama", ""):
            app()
    except AutoMixAlignError as error:
        Console(stderr=True).print(Text.assemble(("error:", "red"), f" {error}"), soft_wrap=True)
        sys.exit(2)
