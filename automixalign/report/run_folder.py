"""The run folder: one place with stable names for what the steps of a run made.

    config.yaml  leaderboard.{json,md}  report/{index.html,data.json}  plots/  data/TASK/  reference_logps/TASK/
    specialist_losses/TASK/  evaluations/MODEL/  models/MODEL/  trajectories/MODEL.jsonl  logs/

Each step states in its artifacts' metadata (`run_path`) where they belong; files are linked, not copied. A
folder belongs to one experiment and to one run at a time; a run that was ended goes on when it is started
again.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from automixalign.config.experiment import Experiment, parse_experiment
from automixalign.config.file import dump_yaml, read_yaml
from automixalign.storage import files
from automixalign.system.errors import ConfigError
from automixalign.system.flatten import flatten

CONFIG = "config.yaml"
LOGS = "logs"
LEADERBOARD = "leaderboard.json"
"""There once a run has ended well."""
WORK = ".kfp"
"""What only the run itself looks at: the steps' artifacts as kfp keeps them, its cache, checkpoints."""
LOCK = "lock"

_NAMED = 5


def is_begun(folder: Path) -> bool:
    """Whether a run has begun in a folder; what is wrong with one that cannot be looked at, `claim` says."""
    try:
        return (folder / WORK).is_dir()
    except OSError:
        return False


@contextmanager
def claim(folder: Path, experiment: Experiment) -> Iterator[TextIO]:
    """Have a run folder for oneself, a new one or that of the same experiment.

    The lock is the system's, on an open file: it ends with the processes that hold it, so that no stale one is
    left behind by a run that was killed. Yields that file, for processes that shall hold it too.

    Raises:
        ConfigError: another run is at work there, it belongs to another experiment or to nobody's run, or it
            cannot be written to.
    """
    try:
        new = not folder.exists()
        if not new and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / WORK).is_dir())):
            raise ConfigError(f"--output {folder} holds something already; name a new folder")
        (folder / WORK).mkdir(parents=True, exist_ok=True)
        lock = (folder / WORK / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--output {folder!s:.200} cannot be written to: {error.strerror}") from error
    with lock:
        _lock(lock, folder)
        _check_experiment(folder, experiment)
        (folder / LOGS).mkdir(exist_ok=True)
        files.write_text(folder / CONFIG, dump_yaml(experiment))
        yield lock


def _lock(lock: TextIO, folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        raise ConfigError(
            f"--output {folder}: another run is at work there ({lock.read().strip() or 'it has just begun'}); "
            "wait for it, end it, or name another folder"
        ) from error
    except OSError as error:
        raise ConfigError(f"--output {folder}: its file system has no locks: {error}") from error
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    lock.flush()


def _check_experiment(folder: Path, experiment: Experiment) -> None:
    """Refuse a folder with the results of another experiment."""
    path = folder / CONFIG
    if not path.exists():
        return
    there = parse_experiment(read_yaml(path), str(path))
    if there == experiment:
        return
    old, new = (dict(flatten(each.model_dump(mode="json"))) for each in (there, experiment))
    changed = [key for key in {**old, **new} if json.dumps(old.get(key)) != json.dumps(new.get(key))]
    more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
    raise ConfigError(
        f"--output {folder} holds the run of another experiment: it differs in {', '.join(changed[:_NAMED])}"
        f"{more}; name a new folder (what is the same is taken from the cache)"
    )


def publish(folder: Path, artifacts: Iterable[tuple[Path, dict[str, Any]]]) -> None:
    """Link artifacts (path and metadata) to their places in the run folder."""
    for path, metadata in artifacts:
        if path.exists() and "run_path" in metadata:
            files.link(path, folder / metadata["run_path"])
