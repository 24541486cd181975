"""The records that are waiting to be sent: a folder with a file each."""

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
"""Set where a process sends for all steps, so that they need not."""
URI, RUN_ID = "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID"
_SUFFIX = ".record.json"
_TARGET = "target.json"
_CLOSED, _TOLD = "closed", "told"


class Target(BaseModel):
    """Where the records of a spool go."""

    key: str = Field(default_factory=new_key)
    """Names the spool, so that a run which was made for it is found again."""
    uri: str
    experiment: str | None = None
    run_name: str | None = None
    run_id: str | None = None
    """The run of the whole pipeline."""
    ours: bool = False
    """We made that run, so we also end it; one handed in is somebody else's to end."""
    artifacts: str | None = None
    """Where an experiment of our own keeps its artifacts."""


class Spool:
    """A folder of waiting records and their target."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, record: Record) -> None:
        """Keep a record until it is sent; what is said of the whole pipeline is not said twice."""
        # Without a target the spool is no pipeline's in particular.
        once = record.of_pipeline and (self.folder / _TARGET).exists()
        told = self._told() if once else []
        if record.content in told:
            return
        self.save(self.folder / f"{time.time_ns()}-{os.getpid()}{_SUFFIX}", record)
        if once:
            files.write_text(self.folder / _TOLD, "\n".join([*told, record.content]))

    def _told(self) -> list[str]:
        file = self.folder / _TOLD
        return file.read_text(encoding="ascii").split() if file.exists() else []

    def save(self, file: Path, record: Record) -> None:
        """Write a record in place."""
        files.write_text(file, record.model_dump_json())

    def waiting(self) -> list[Path]:
        """The records' files, oldest first."""
        return sorted(self.folder.glob(f"*{_SUFFIX}"))

    def target(self) -> Target | None:
        """Where the records go: what was set, else what the environment names."""
        file = self.folder / _TARGET
        if file.exists():
            return Target.model_validate_json(file.read_text(encoding="utf-8"))
        if URI in os.environ:
            return Target(uri=_without_credentials(os.environ[URI]), run_id=os.environ.get(RUN_ID))
        return None

    def aim(self, target: Target) -> None:
        """Set the target."""
        files.write_text(self.folder / _TARGET, target.model_dump_json())

    def reopen(self, target: Target) -> bool:
        """Go on: with the pipeline's run of before where it is in the same place, else with a new target.

        Returns:
            Whether there is something to tell: not where all of a run was told that had ended well.
        """
        ended_well = self.closed() == "FINISHED" and not self.waiting()
        before = self.target() if (self.folder / _TARGET).exists() else None
        if before is None or (before.uri, before.experiment) != (target.uri, target.experiment):
            (self.folder / _TOLD).unlink(missing_ok=True)
            self.aim(target)
            ended_well = False
        (self.folder / _CLOSED).unlink(missing_ok=True)
        return not ended_well

    def close(self, status: str) -> None:
        """Tell whoever follows the spool that no more records come, and how the pipeline ended."""
        files.write_text(self.folder / _CLOSED, status)

    def closed(self) -> str | None:
        """How the pipeline ended, or None while it has not."""
        file = self.folder / _CLOSED
        return file.read_text(encoding="utf-8") if file.exists() else None


def of_environment() -> Spool | None:
    """The spool of this process, or None where nothing is tracked."""
    if FOLDER in os.environ:
        return Spool(Path(os.environ[FOLDER]))
    if URI in os.environ:
        return Spool(_own_folder())
    return None


def _own_folder() -> Path:
    """A folder that all steps of this user share; a record names files to send, so nobody else may leave one.

    Raises:
        ConfigError: somebody else has made it, or may write there.
    """
    folder = Path(tempfile.gettempdir()) / f"automixalign-spool-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigError(f"{folder} is not this user's alone: remove it, or name another folder in {FOLDER}")
    return folder


def _without_credentials(uri: str) -> str:
    """The server's address; user and password go to the environment, where MLflow looks for them, too."""
    parts = urlsplit(uri)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return uri
    name, _, password = user.partition(":")
    os.environ.setdefault("MLFLOW_TRACKING_USERNAME", unquote(name))
    os.environ.setdefault("MLFLOW_TRACKING_PASSWORD", unquote(password))
    return urlunsplit(parts._replace(netloc=host))
