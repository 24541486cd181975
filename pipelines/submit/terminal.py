"""What the terminal shows of a submission, and its exit status."""

import time

from rich.console import Console
from rich.markup import escape

from automixalign.config.experiment import Experiment
from automixalign.config.file import dump_yaml
from automixalign.system.errors import Interrupted
from automixalign.system.plain_text import printable
from pipelines.submit.following import Outcome, follow
from pipelines.submit.server import Access, Server
from pipelines.submit.submission import Submission

_NO_REASON = "the server gives no reason; read the stage's log"


def show_dry_run(console: Console, submission: Submission, access: Access) -> None:
    """Show what would be sent, and to which server."""
    console.print("dry run: nothing is sent", highlight=False)
    for title, value in {**access.facts(), **submission.facts()}.items():
        _print(console, f"  {title:<13}{value}")
    console.print("  config:", highlight=False)
    for line in dump_yaml(submission.experiment).splitlines():
        _print(console, f"    {line}")


def send(console: Console, server: Server, submission: Submission) -> str:
    """Start the run, and show where it is.

    Args:
        console: where to print.
        server: runs the pipeline.
        submission: the run to start.

    Returns:
        The id of the run.

    Raises:
        ServerError: the run cannot be started.
    """
    started = submission.send(server)
    link = server.link(started.run_id)
    upload = "uploaded" if started.uploaded else "is already on the server"
    _print(console, f"{submission.pipeline_name} {submission.version} {upload}")
    _print(console, f"{submission.run_name}: {link}")
    return started.run_id


def show_run(
    console: Console, server: Server, experiment: Experiment, run: tuple[str, str], poll: float, command: str
) -> int:
    """Show the progress of a run until it ends. Ctrl-C does not stop the run.

    Args:
        console: where to print.
        server: has the run.
        experiment: what it runs.
        run: its id, and its name for messages.
        poll: seconds between two status requests.
        command: follows the run again.

    Returns:
        The exit status: 0 if the run succeeded, 1 if it did not.

    Raises:
        FollowingError: the run cannot be followed.
        Interrupted: the user no longer follows the run.
    """
    run_id, name = run
    link = server.link(run_id)
    try:
        from pipelines.local import display  # slow to import; the run has already started
        from pipelines.local.watching.time_left import list_stages

        progress = display.Progress(console, len(list_stages(experiment)))
        with progress.live:
            outcome = follow(server, run_id, progress.show, poll)
    except Interrupted as interruption:
        message = f"no longer following; the run continues: {link}\nto follow it again: {command}"
        interruption.message = printable(message)
        raise
    return _show_end(console, outcome, name, seconds=time.time() - progress.started, link=link)


def _show_end(console: Console, outcome: Outcome, name: str, seconds: float, link: str) -> int:
    from pipelines.local.display import mark

    if outcome.succeeded:
        line = f"{mark(console, True)} {escape(printable(f'{name} succeeded after {seconds:.0f} s: {link}'))}"
        console.print(line, highlight=False, soft_wrap=True, emoji=False)
        return 0
    errors = Console(stderr=True)
    line = f"{mark(errors, False)} [red]{escape(printable(f'{name}: {outcome.state}'))}[/]"
    errors.print(line, highlight=False, soft_wrap=True, emoji=False)
    if outcome.message:
        _print(errors, f"  {outcome.message}")
    for stage, message in outcome.failed:
        _print(errors, f"  {stage}: {message or _NO_REASON}")
    _print(errors, f"  {link}")
    return 1


def _print(console: Console, text: str) -> None:
    console.print(printable(text), highlight=False, soft_wrap=True, markup=False, emoji=False)
