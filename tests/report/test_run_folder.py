"""A run folder belongs to one experiment, and to one run at a time."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from automixalign.config.experiment import Experiment, parse_experiment
from automixalign.report import run_folder
from automixalign.system import orphans
from automixalign.system.errors import ConfigError


@pytest.fixture
def experiment(experiment_data: dict[str, Any]) -> Experiment:
    return parse_experiment(experiment_data, "test")


HOLDER = """
import sys, time
from pathlib import Path
from automixalign.config.experiment import parse_experiment
from automixalign.report import run_folder
from automixalign.storage import files
experiment = parse_experiment(files.read_json(Path(sys.argv[2])), "test")
with run_folder.claim(Path(sys.argv[1]), experiment):
    print("held", flush=True)
    time.sleep(600)
"""


def hold(folder: Path, experiment: Experiment, tmp_path: Path) -> "subprocess.Popen[str]":
    """Claim a folder in another process."""
    file = tmp_path / "experiment.json"
    file.write_text(experiment.model_dump_json())
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), str(file)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_run_is_refused_and_a_lock_whose_holder_was_killed_is_none(
    experiment: Experiment, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    process = hold(folder, experiment, tmp_path)
    try:
        with (
            pytest.raises(ConfigError, match=f"another run uses it .process {process.pid} on"),
            run_folder.claim(folder, experiment),
        ):
            pass
    finally:
        process.kill()
        process.wait()
    assert (folder / run_folder.WORK / run_folder.LOCK).read_text().startswith(f"process {process.pid} ")
    with run_folder.claim(folder, experiment):
        assert f"process {os.getpid()} " in (folder / run_folder.WORK / run_folder.LOCK).read_text()


def test_a_folder_of_another_experiment_is_refused_by_the_keys_that_differ(
    experiment: Experiment, experiment_data: dict[str, Any], tmp_path: Path
) -> None:
    with run_folder.claim(tmp_path / "run", experiment):
        pass
    before = (tmp_path / "run" / run_folder.CONFIG).read_text()
    experiment_data["methods"][1]["eta"] = 0.2
    experiment_data["seed"] = 1
    other = parse_experiment(experiment_data, "test")
    with (
        pytest.raises(
            ConfigError, match=r"another experiment: it differs in seed, methods\.1\.eta; name a new"
        ),
        run_folder.claim(tmp_path / "run", other),
    ):
        pass
    assert (tmp_path / "run" / run_folder.CONFIG).read_text() == before


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_is_nobodys_run_is_left_alone(what: str, experiment: Experiment, tmp_path: Path) -> None:
    place = tmp_path / "mine"
    if what == "folder":
        place.mkdir()
    held = place / "thesis.tex" if what == "folder" else place
    held.write_text("years")
    with pytest.raises(ConfigError, match="holds something already"), run_folder.claim(place, experiment):
        pass
    assert held.read_text() == "years"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [held.name]


def test_a_process_ends_with_the_one_it_depends_on(tmp_path: Path) -> None:
    """Also where that one was killed and nobody has asked yet how it ended."""
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\nfrom pathlib import Path\nfrom automixalign.system import orphans\n"
            "held = orphans.hold_lock(Path(sys.argv[1]))\nprint('held', flush=True)\ntime.sleep(600)",
            str(tmp_path / "alive"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    dependent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import time\nfrom automixalign.system import orphans\n"
            "orphans.end_with_lock_holder()\nprint('on', flush=True)\ntime.sleep(600)",
        ],
        env={**os.environ, orphans.LOCK_VARIABLE: str(tmp_path / "alive")},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert dependent.stdout is not None
    assert dependent.stdout.readline() == "on\n"
    time.sleep(0.2)
    assert dependent.poll() is None
    holder.kill()
    assert dependent.wait(10) == -9
    holder.wait()
