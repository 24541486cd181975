"""The records that wait for a sender: a folder with a file for each."""

import os
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from pydantic import BaseModel, Field

from automixalign.steps.tracking.record import Record, new_key
from automixalign.storage import files
from automixalign.system.errors import ConfigError

FOLDER = "AMA_SPOOL"
"""Names the spool folder."""
FOLLOWED = "AMA_SPOOL_FOLLOWED"
"""Set if another process sends the records of all stages."""
URI, RUN_ID = "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"
_SUFFIX = ".record.json"
_TARGET, _CLOSED = "target.json", "closed"
_PIPELINE_RECORDS = "pipeline_records"
"""The content digests of the pipeline's records, one a line."""


class Target(BaseModel):
    """Where the records of a spool go."""

    key: str = Field(default_factory=new_key)
    """A tag of the pipeline's MLflow run. A sender that starts again finds the run by it."""
    uri: str
    experiment: str | None = None
    run_name: str | None = None
    run_id: str | None = None
    """The run of the whole pipeline."""
    ends_run: bool = False
    """Whether the sender also ends that run: it does if it created the run."""
    artifacts: str | None = None
    """Where a new experiment stores its artifacts."""


class Spool:
    """A folder of waiting records and their target."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, record: Record) -> None:
        """Add a record, unless it is of the whole pipeline and an equal one was added before."""
        # A spool without a target belongs to no pipeline in particular.
        once = record.of_pipeline and (self.folder / _TARGET).exists()
        earlier = self._pipeline_records() if once else []
        if record.content in earlier:
            return
        self.save(self.folder / f"{time.time_ns()}-{os.getpid()}{_SUFFIX}", record)
        if once:
            files.write_text(self.folder / _PIPELINE_RECORDS, "\n".join([*earlier, record.content]))

    def _pipeline_records(self) -> list[str]:
        file = self.folder / _PIPELINE_RECORDS
        return file.read_text(encoding="ascii").split() if file.exists() else []

    def save(self, file: Path, record: Record) -> None:
        """Write a record to its file."""
        files.write_text(file, record.model_dump_json())

    def waiting(self) -> list[Path]:
        """The records' files, oldest first."""
        return sorted(self.folder.glob(f"*{_SUFFIX}"))

    def target(self) -> Target | None:
        """The target that `aim` set, else the one that the environment names."""
        file = self.folder / _TARGET
        if file.exists():
            return Target.model_validate_json(file.read_text(encoding="utf-8"))
        if URI in os.environ:
            return Target(uri=_move_credentials(os.environ[URI]), run_id=os.environ.get(RUN_ID))
        return None

    def aim(self, target: Target) -> None:
        """Set the target."""
        files.write_text(self.folder / _TARGET, target.model_dump_json())

    def reopen(self, target: Target) -> bool:
        """Continue with the earlier target if server and experiment are the same, else with the new one.

        Returns:
            Whether there is anything to send. There is not if the pipeline's run has succeeded and was sent.
        """
        complete = self.closed() == "FINISHED" and not self.waiting()
        earlier = self.target() if (self.folder / _TARGET).exists() else None
        if earlier is None or (earlier.uri, earlier.experiment) != (target.uri, target.experiment):
            (self.folder / _PIPELINE_RECORDS).unlink(missing_ok=True)
            self.aim(target)
            complete = False
        (self.folder / _CLOSED).unlink(missing_ok=True)
        return not complete

    def close(self, status: str) -> None:
        """Tell the sender that no more records come, and how the pipeline ended."""
        files.write_text(self.folder / _CLOSED, status)

    def closed(self) -> str | None:
        """How the pipeline ended, or None before its end."""
        file = self.folder / _CLOSED
        return file.read_text(encoding="utf-8") if file.exists() else None


def of_environment() -> Spool | None:
    """The spool of this process, or None if MLflow is not used."""
    if FOLDER in os.environ:
        return Spool(Path(os.environ[FOLDER]))
    if URI in os.environ:
        return Spool(_user_folder())
    return None


def _user_folder() -> Path:
    """The folder that all stages of this user share. Only the user may write it: a record names files to send.

    Raises:
        ConfigError: another user owns it, or may write to it.
    """
    folder = Path(tempfile.gettempdir()) / f"automixalign-spool-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise ConfigError(
            f"{folder} is not private to this user: remove it, or name another folder in {FOLDER}"
        )
    return folder


def _move_credentials(uri: str) -> str:
    """The URI without user and password, which go to the environment variables that MLflow also reads."""
    parts = urlsplit(uri)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return uri
    name, _, password = user.partition(":")
    os.environ.setdefault("MLFLOW_TRACKING_USERNAME", unquote(name))
    os.environ.setdefault("MLFLOW_TRACKING_PASSWORD", unquote(password))
    return urlunsplit(parts._replace(netloc=host))
