"""The process that runs the DAG locks the run folder, ends completely, and logs its errors."""

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from automixalign.system import orphans
from pipelines.local.dag_process import DagProcess

Start = Callable[..., DagProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a process whose attempt file is a pipe: it waits until somebody writes the attempt."""
    processes = []

    def call(attempt: Path = tmp_path / "attempt", **environment: str) -> DagProcess:
        with (tmp_path / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            processes.append(DagProcess(attempt, environment, tmp_path / "log", lock))
        return processes[-1]

    os.mkfifo(tmp_path / "attempt")
    yield call
    for process in processes:
        process.end()


def is_locked(path: Path) -> bool:
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def test_end_leaves_no_process_and_no_lock(start: Start, tmp_path: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    process = start()
    with (tmp_path / "attempt").open("w"):  # opens when the process reads
        children = set(psutil.Process().children(recursive=True)) - before
        assert children
        assert process.is_running(0.1)
        assert is_locked(tmp_path / "lock")
        process.end()
    assert not psutil.wait_procs(children, 10)[1]
    assert not is_locked(tmp_path / "lock")


def test_it_ends_when_the_process_that_started_it_is_gone(start: Start, tmp_path: Path) -> None:
    with orphans.hold_lock(tmp_path / "alive") as alive_lock:
        process = start(**{orphans.LOCK_VARIABLE: alive_lock.name})
        attempt = (tmp_path / "attempt").open("w")
        assert process.is_running(0.1)
    with attempt:
        assert not process.is_running(60)


def test_an_error_before_the_first_stage_is_in_the_log(start: Start, tmp_path: Path) -> None:
    process = start(tmp_path / "nowhere.json")
    assert not process.is_running(60)
    assert process.end() == 1
    assert f"No such file or directory: '{tmp_path}/nowhere.json'" in (tmp_path / "log").read_text()
