"""`ama sync`."""

import typer

from automixalign.system.errors import ConfigError
from pipelines.cli.options import RunFolder


def sync(folder: RunFolder) -> None:
    """Send the records of a run that MLflow did not accept during the run.

    Example:

        ama sync runs/quickstart-20250101-120000
    """
    from automixalign.steps.tracking.send import send_waiting
    from automixalign.steps.tracking.spool import Spool
    from pipelines.local.mlflow_sender import spool_folder

    if not spool_folder(folder).is_dir():
        raise ConfigError(f"{folder} is not a run folder of `ama run`")
    spool = Spool(spool_folder(folder))
    total = len(spool.waiting())
    reason = send_waiting(spool)
    typer.echo(f"sent {total - len(spool.waiting())} of {total} records")
    if reason:
        raise ConfigError(f"MLflow does not take the rest: {reason}")
