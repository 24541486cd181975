"""The run folder: stable names for the results of a run.

    config.yaml  leaderboard.{json,md}  report/{index.html,data.json}  plots/  data/TASK/  reference_logps/TASK/
    specialist_losses/TASK/  evaluations/MODEL/  benchmarks/MODEL/  models/MODEL/
    trajectories/MODEL.jsonl  logs/

Each stage names the path of a result in the metadata of its artifact (`run_path`). Files are linked, not
copied. A folder belongs to one experiment, and to one run at a time. An interrupted run continues when it is
started again.
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
from automixalign.system.messages import logger

CONFIG = "config.yaml"
LOGS = "logs"
LEADERBOARD = "leaderboard.json"
"""A run folder has this file when the run has succeeded."""
WORK = ".kfp"
"""Internal to the run: the stages' artifacts as kfp stores them, its cache, checkpoints."""
LOCK = "lock"

FREE_SECTIONS = ("tracking", "registry", "output")
"""Sections of a configuration that may change between the attempts of a run: they change no result."""
_MAX_LISTED_KEYS = 5


def is_begun(folder: Path) -> bool:
    """Whether a run has begun in a folder; False for one that cannot be read, which `claim` refuses."""
    try:
        return (folder / WORK).is_dir()
    except OSError:
        return False


@contextmanager
def claim(folder: Path, experiment: Experiment) -> Iterator[TextIO]:
    """Lock a run folder, either a new one or one of the same experiment.

    The system releases the lock of an open file when the processes that hold it end, also when they are killed.
    Yields that file, so that other processes can hold it too.

    Raises:
        ConfigError: another run uses the folder, it belongs to another experiment, it has other content, or it
            cannot be written.
    """
    try:
        new = not folder.exists()
        if not new and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / WORK).is_dir())):
            raise ConfigError(f"--output {folder} exists and is not an empty folder; name a new folder")
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
            f"--output {folder}: another run uses it ({lock.read().strip() or 'it has just begun'}); "
            "wait for it, end it, or name another folder"
        ) from error
    except OSError as error:
        raise ConfigError(f"--output {folder}: its file system has no locks: {error}") from error
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    lock.flush()


def _check_experiment(folder: Path, experiment: Experiment) -> None:
    """Refuse a folder with the results of another experiment; say what differs without changing a result."""
    path = folder / CONFIG
    if not path.exists():
        return
    previous = parse_experiment(read_yaml(path), str(path))
    old, new = (dict(flatten(each.model_dump(mode="json"))) for each in (previous, experiment))
    changed = [key for key in {**old, **new} if json.dumps(old.get(key)) != json.dumps(new.get(key))]
    free = list(dict.fromkeys(key.split(".")[0] for key in changed if key.split(".")[0] in FREE_SECTIONS))
    changed = [key for key in changed if key.split(".")[0] not in FREE_SECTIONS]
    if not changed:
        if free:
            logger.warning(
                "--output %s: changed: %s; only stages that use the changed keys run again",
                folder,
                ", ".join(free),
            )
        return
    keys = ", ".join(changed[:_MAX_LISTED_KEYS])
    if len(changed) > _MAX_LISTED_KEYS:
        keys += f" and {len(changed) - _MAX_LISTED_KEYS} more"
    raise ConfigError(
        f"--output {folder} holds the run of another experiment: it differs in {keys}; "
        "name a new folder (equal stages come from the cache)"
    )


def publish(folder: Path, artifacts: Iterable[tuple[Path, dict[str, Any]]]) -> None:
    """Link artifacts (path and metadata) into the run folder, at the paths in their metadata."""
    for path, metadata in artifacts:
        if path.exists() and "run_path" in metadata:
            files.link(path, folder / metadata["run_path"])
