"""The process that is started ahead of a run: it waits, holds the folder, and leaves nothing behind."""

import fcntl
import os
from pathlib import Path

import psutil
import pytest

from pipelines.local.ahead import Ahead


def is_held(path: Path) -> bool:
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


@pytest.mark.parametrize("warmly", [True, False])
def test_one_that_is_not_needed_ends_with_all_that_it_started(warmly: bool) -> None:
    me = psutil.Process()
    before = set(me.children(recursive=True))
    with Ahead(warmly) as process:
        assert process.runs(1)
        started = set(me.children(recursive=True)) - before
    _, alive = psutil.wait_procs(started, 10)
    assert started
    assert not alive


def test_one_whose_starter_is_gone_ends_by_itself() -> None:
    process = Ahead(warmly=False)
    process._asked.close()
    assert not process.runs(60)
    assert (process.end(), process.said()) == (0, b"")


def test_what_goes_wrong_before_there_is_a_log_is_kept(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock, Ahead(warmly=False) as process:
        process.begin(tmp_path / "nowhere.json", lock)
        assert not process.runs(60)
        assert process.end() == 1
        assert f"No such file or directory: '{tmp_path}/nowhere.json'" in process.said().decode()


def test_the_folder_is_in_use_for_as_long_as_the_process_lives(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "attempt")  # whoever reads it waits
    with Ahead(warmly=False) as process:
        with (tmp_path / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            process.begin(tmp_path / "attempt", lock)
            writing = (tmp_path / "attempt").open("w")  # opens once it reads
        with writing:
            assert is_held(tmp_path / "lock")
            process.end()
            assert not is_held(tmp_path / "lock")
