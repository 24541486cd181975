"""A run folder belongs to one experiment, and to one run at a time."""

import os
from pathlib import Path
from typing import Any

import pytest

from automixalign.config.experiment import Experiment, parse_experiment
from automixalign.report import run_folder
from automixalign.system.errors import ConfigError
from tests.system.processes import start

_HOLDER = """
import sys, time
from pathlib import Path
from automixalign.config.experiment import parse_experiment
from automixalign.report import run_folder
from automixalign.storage import files
experiment = parse_experiment(files.read_json(Path(sys.argv[2])), "test")
with run_folder.claim(Path(sys.argv[1]), experiment):
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def experiment(experiment_data: dict[str, Any]) -> Experiment:
    return parse_experiment(experiment_data, "test")


def check_refused(folder: Path, experiment: Experiment, message: str) -> None:
    with pytest.raises(ConfigError, match=message), run_folder.claim(folder, experiment):
        pytest.fail("the folder was claimed")


def test_a_second_run_is_refused_until_the_first_is_killed(experiment: Experiment, tmp_path: Path) -> None:
    folder, file = tmp_path / "run", tmp_path / "experiment.json"
    file.write_text(experiment.model_dump_json())
    process = start(_HOLDER, folder, file)
    try:
        check_refused(folder, experiment, f"another run uses it .process {process.pid} on")
    finally:
        process.kill()
        process.wait()
    lock = folder / run_folder.WORK / run_folder.LOCK
    assert lock.read_text().startswith(f"process {process.pid} ")
    with run_folder.claim(folder, experiment):
        assert f"process {os.getpid()} " in lock.read_text()


def test_a_folder_of_another_experiment_is_refused_with_the_keys_that_differ(
    experiment: Experiment, experiment_data: dict[str, Any], tmp_path: Path
) -> None:
    with run_folder.claim(tmp_path / "run", experiment):
        pass
    before = (tmp_path / "run" / run_folder.CONFIG).read_text()
    experiment_data["methods"][1]["eta"] = 0.2
    other = parse_experiment(experiment_data | {"seed": 1}, "test")
    message = r"another experiment: it differs in seed, methods\.1\.eta; name a new"
    check_refused(tmp_path / "run", other, message)
    assert (tmp_path / "run" / run_folder.CONFIG).read_text() == before


def test_where_results_go_may_change_between_attempts(
    experiment: Experiment,
    experiment_data: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with run_folder.claim(tmp_path / "run", experiment):
        pass
    assert "changed" not in capsys.readouterr().err
    changes = {"registry": {"name": "m"}, "output": {"to": "published"}}
    with run_folder.claim(tmp_path / "run", parse_experiment(experiment_data | changes, "test")):
        pass
    assert (
        "changed: registry, output; only stages that use the changed keys run again" in capsys.readouterr().err
    )
    assert "name: m" in (tmp_path / "run" / run_folder.CONFIG).read_text()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_other_content_stays(kind: str, experiment: Experiment, tmp_path: Path) -> None:
    output = tmp_path / "mine"
    file = output / "thesis.tex" if kind == "folder" else output
    file.parent.mkdir(exist_ok=True)
    file.write_text("years")
    check_refused(output, experiment, "exists and is not an empty folder")
    assert file.read_text() == "years"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]
