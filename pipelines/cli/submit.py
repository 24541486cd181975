"""`ama submit`."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from automixalign.system.errors import ConfigError
from pipelines.cli.options import (
    Config,
    NoCache,
    Preset,
    Sets,
    Tasks,
    load_experiment,
    repeated_command,
    timestamped_name,
    warn_about_tag,
)


def _name(option: str, help_text: str, *short: str, envvar: str | None = None) -> Any:
    return typer.Option(option, *short, metavar="NAME", help=help_text, envvar=envvar)


def _file(option: str, help_text: str, envvar: str | None = None) -> Any:
    return typer.Option(
        option, metavar="FILE", help=help_text, envvar=envvar, exists=True, dir_okay=False, readable=True
    )


def submit(
    preset: Preset = None,
    file: Config = None,
    task: Tasks = None,
    set_: Sets = None,
    host: Annotated[
        str | None,
        typer.Option(
            "--host",
            envvar="KF_PIPELINES_ENDPOINT",
            metavar="URL",
            help="The server. [default: that of the pod's cluster, else that of the kubeconfig]",
        ),
    ] = None,
    experiment_name: Annotated[
        str,
        _name(
            "--experiment",
            "Group of runs on the server; created if it does not exist.",
            envvar="KF_PIPELINES_DEFAULT_EXPERIMENT_NAME",
        ),
    ] = "automixalign",
    run_name: Annotated[str | None, _name("--run-name", "[default: NAME-DATE-TIME]")] = None,
    pipeline_name: Annotated[
        str, _name("--pipeline-name", "Pipeline on the server that gets the compiled version.")
    ] = "automixalign",
    namespace: Annotated[
        str | None, _name("--namespace", "Your namespace, if the server has several users.", "-n")
    ] = None,
    service_account: Annotated[
        str | None, _name("--service-account", "Kubernetes service account of the pods.")
    ] = None,
    token_file: Annotated[
        Path | None,
        _file(
            "--token-file",
            "File with a bearer token; read again for every request. The environment variable AMA_KFP_TOKEN "
            "can hold a constant token instead.",
            envvar="KF_PIPELINES_SA_TOKEN_PATH",
        ),
    ] = None,
    ssl_ca_cert: Annotated[
        Path | None, _file("--ssl-ca-cert", "Certificate of the authority to trust (PEM).")
    ] = None,
    client_cert: Annotated[Path | None, _file("--client-cert", "Your client certificate (PEM).")] = None,
    client_key: Annotated[Path | None, _file("--client-key", "Key of the client certificate (PEM).")] = None,
    kube_context: Annotated[str | None, _name("--kube-context", "Context of the kubeconfig.")] = None,
    no_cache: NoCache = False,
    detach: Annotated[bool, typer.Option("--detach", help="Start the run and do not follow it.")] = False,
    follow: Annotated[
        str | None,
        typer.Option(
            "--follow", metavar="RUN_ID", help="Start nothing; follow this run of the same configuration."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent; send nothing.")] = False,
    poll: Annotated[
        float, typer.Option("--poll", metavar="SECONDS", min=0.01, help="Time between two status requests.")
    ] = 5.0,
) -> None:
    """Run an experiment on Kubeflow Pipelines and follow it to its end.

    The pipeline is uploaded unless the server already has this version. Ctrl-C stops this command, not the
    run, and prints how to follow it again. Exit status: 0 if the run succeeded, 1 if it failed or was
    cancelled, 2 if it could not be started or followed.

    Examples:

        ama submit --config my.yaml --host https://kubeflow.example/pipeline --namespace me --token-file token

        ama submit --preset quickstart --host http://localhost:8888 --dry-run
    """
    from pipelines.dag import compiling
    from pipelines.submit import terminal
    from pipelines.submit.reachable import check_reachable
    from pipelines.submit.server import Access, Server
    from pipelines.submit.submission import Submission

    if follow is not None and (detach or dry_run):
        raise ConfigError(
            "--follow follows a run that was started before; it goes without --detach and --dry-run"
        )
    experiment = load_experiment(preset, file, task, set_, no_cache=no_cache)
    check_reachable(experiment)
    access = Access(
        host=host,
        namespace=namespace,
        token_file=token_file,
        ssl_ca_cert=ssl_ca_cert,
        client_cert=client_cert,
        client_key=client_key,
        kube_context=kube_context,
    )
    console = Console()
    if follow is not None:
        run = follow, run_name or follow
        status = terminal.show_run(console, Server(access), experiment, run, poll, repeated_command())
        raise typer.Exit(status)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "pipeline.yaml"
        compiling.write_pipeline(experiment, package)
        warn_about_tag()
        submission = Submission(
            experiment=experiment,
            run_name=run_name or timestamped_name(experiment),
            kfp_experiment=experiment_name,
            pipeline_name=pipeline_name,
            service_account=service_account,
            package=package,
        )
        if dry_run:
            terminal.show_dry_run(console, submission, access)
            return
        server = Server(access)
        run_id = terminal.send(console, server, submission)
    if not detach:
        command = repeated_command("--follow", run_id)
        run = run_id, submission.run_name
        raise typer.Exit(terminal.show_run(console, server, experiment, run, poll, command))
