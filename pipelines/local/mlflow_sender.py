"""Send the records of a local run to MLflow: one process sends them while the stages work."""

import os
import subprocess
import sys
from pathlib import Path

from automixalign.config.experiment import Experiment
from automixalign.config.release import holds_credentials
from automixalign.report.run_folder import WORK
from automixalign.steps.tracking import spool
from automixalign.steps.tracking.store import (
    ARTIFACTS,
    check_no_folder,
    default_store,
    sqlite_file,
    sqlite_uri,
)
from automixalign.storage import files
from automixalign.system.errors import ConfigError

LINK = "mlflow.json"
"""In a run folder: the store, the experiment and the id of the MLflow run."""
MAX_WAIT_SECONDS = 120
"""How long a run waits at its end for MLflow to accept the last records."""


def spool_folder(run_folder: Path) -> Path:
    """The folder of the records that MLflow has not accepted yet."""
    return run_folder / WORK / "spool"


def store_uri(experiment: Experiment) -> str:
    """The store of a run: that of the configuration, of the environment, or of the working directory.

    Raises:
        ConfigError: the URI holds a password, which would be written to the run folder; or the store cannot be
            written.
    """
    uri = experiment.tracking.uri or os.environ.get(spool.URI) or default_store()
    if holds_credentials(uri):
        raise ConfigError(f"{spool.URI} holds a user or password; use MLFLOW_TRACKING_USERNAME and _PASSWORD")
    check_no_folder(uri)
    if (file := sqlite_file(uri)) is None:
        return uri
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise ConfigError(
            f"tracking.uri: the MLflow store {file} cannot be written; name another one, such as "
            "sqlite:///FOLDER/mlflow.db, or run in another working directory"
        )
    return sqlite_uri(file)


class MlflowSender:
    """Sends records to the run's store.

    Args:
        experiment: the checked configuration.
        run_folder: absolute.
        log: file for the output of the process that sends.

    Raises:
        ConfigError: see `store_uri`.
    """

    def __init__(self, experiment: Experiment, run_folder: Path, log: Path) -> None:
        uri = store_uri(experiment)
        store = sqlite_file(uri)
        self._link = run_folder / LINK
        self.spool = spool.Spool(spool_folder(run_folder))
        target = spool.Target(
            uri=uri,
            experiment=experiment.tracking.experiment,
            run_name=run_folder.name,
            run_id=os.environ.get(spool.RUN_ID),
            artifacts=(store.parent / ARTIFACTS).as_uri() if store else None,
        )
        self._must_send = self.spool.reopen(target)
        self.environment = {spool.FOLDER: str(self.spool.folder), spool.FOLLOWED: "1", spool.URI: uri}
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start_if_needed(self) -> None:
        """Start the process that sends, if there are records and it does not run yet."""
        if self._process is None and (self._must_send or self.spool.waiting()):
            command = [sys.executable, "-m", "automixalign.steps.tracking", str(self.spool.folder)]
            with self._log.open("wb") as output:
                self._process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)

    def close(self, status: str) -> None:
        """Tell the sender that there are no more records.

        Args:
            status: MLflow's status for the whole run.
        """
        self._must_send |= status != "FINISHED"
        self.start_if_needed()
        self.spool.close(status)

    def wait(self) -> str | None:
        """Wait until MLflow has all records, and write the link to the MLflow run; call `close` first.

        Returns:
            None if MLflow has everything, else what is missing and how to send it.
        """
        try:
            return self._wait()
        finally:
            if (target := self.spool.target()) and target.run_id:
                link = {"uri": target.uri, "experiment": target.experiment, "run_id": target.run_id}
                files.write_json(self._link, link)

    def _wait(self) -> str | None:
        if self._process is None:
            return None
        try:
            self._process.wait(MAX_WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            reason = f"it did not finish within {MAX_WAIT_SECONDS} s"
        else:
            reason = self._log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
        missing = len(self.spool.waiting())
        if not missing and not self._process.returncode:
            return None
        folder = self.spool.folder.parent.parent
        return f"MLflow did not take everything ({missing} records wait; {reason}): `ama sync {folder}`"
