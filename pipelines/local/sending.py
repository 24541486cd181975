"""What a local run tells MLflow: one process sends the records of all steps while they work."""

import os
import subprocess
import sys
from pathlib import Path

from automixalign.config.experiment import Experiment
from automixalign.config.release import holds_credentials
from automixalign.report.run_folder import WORK
from automixalign.steps.tracking import spool
from automixalign.system.errors import ConfigError

STORE, ARTIFACTS = "mlflow.db", "mlartifacts"
PATIENCE = 120
"""Seconds that a run waits at its end for MLflow to take what is left."""


def spool_folder(run_folder: Path) -> Path:
    """Where the records of a run wait."""
    return run_folder / WORK / "spool"


class Sender:
    """Sends a run's records to the store of the configuration, the environment, or the run folder's own.

    Args:
        experiment: the checked configuration.
        run_folder: absolute.

    Raises:
        ConfigError: the store's URI holds a password, which would be written to the run folder.
    """

    def __init__(self, experiment: Experiment, run_folder: Path) -> None:
        uri = experiment.tracking.uri or os.environ.get(spool.URI) or f"sqlite:///{run_folder / STORE}"
        if holds_credentials(uri):
            raise ConfigError(
                f"{spool.URI} holds a user or password; use MLFLOW_TRACKING_USERNAME and _PASSWORD"
            )
        self.spool = spool.Spool(spool_folder(run_folder))
        target = spool.Target(
            uri=uri,
            experiment=experiment.tracking.experiment,
            run_name=run_folder.name,
            run_id=os.environ.get(spool.RUN_ID),
            artifacts=(run_folder / ARTIFACTS).as_uri() if uri.startswith("sqlite:") else None,
        )
        self._has_to_tell = self.spool.reopen(target)
        self.environment = {
            spool.FOLDER: str(self.spool.folder),
            spool.FOLLOWED: "1",
            spool.URI: uri,
        }
        self._log: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, log: Path) -> None:
        """Begin to send; the steps need not wait for it. Where all has been told, it begins when more comes."""
        self._log = log
        self.look()

    def look(self) -> None:
        """Begin to send if there is something now, and nobody sends yet."""
        has_to_tell = self._has_to_tell or bool(self.spool.waiting())
        if has_to_tell and self._process is None and self._log is not None:
            self._begin(self._log)

    def _begin(self, log: Path) -> None:
        command = [sys.executable, "-m", "automixalign.steps.tracking", str(self.spool.folder)]
        with log.open("wb") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)

    def close(self, status: str) -> None:
        """Say how the run has ended."""
        self._has_to_tell |= status != "FINISHED"
        self.look()
        self.spool.close(status)

    def wait(self) -> str | None:
        """Wait until all is sent that there was when the sender was closed.

        Returns:
            None when MLflow has everything, else what waits and how to send it.
        """
        if self._process is None:
            return None
        assert self._log is not None  # noqa: S101  it was started
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            reason = f"it was given {PATIENCE} s"
        else:
            reason = self._log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
        left = len(self.spool.waiting())
        if not left and not self._process.returncode:
            return None
        folder = self.spool.folder.parent.parent
        return f"MLflow did not take everything ({left} steps wait; {reason}): `ama sync {folder}`"
