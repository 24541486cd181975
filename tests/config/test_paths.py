"""Paths in a configuration: relative to its folder, with `~`; and paths on the command line."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from automixalign.config.experiment import Experiment
from automixalign.config.file import override, resolve_paths
from automixalign.config.sources import LocalSource, parse_base_model, parse_task
from automixalign.system.errors import ConfigError
from pipelines.cli.options import load_experiment
from tests.data.rows import conversation, write_rows

Data = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration's folder, beside the working directory; the home folder is a third one."""
    for name in ("elsewhere", "home", "project"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "project"


def load(folder: Path, data: Data, **options: Any) -> Experiment:
    path = folder / "my.yaml"
    path.write_text(yaml.safe_dump(data))
    return load_experiment(file=Path(os.path.relpath(path)), **options)


def paths(experiment: Experiment, task: int = 0) -> list[str]:
    """The sources of a task, absolute and without `..`."""
    return [str(Path(source.path).resolve()) for source in experiment.tasks[task].sources]


def test_a_task_is_relative_to_the_configuration(folder: Path, experiment_data: Data) -> None:
    experiment_data["tasks"] = [{"name": "own", "sources": ["a.jsonl", {"path": "../b"}]}]
    assert paths(load(folder, experiment_data)) == [f"{folder}/a.jsonl", f"{folder.parent}/b"]


@pytest.mark.parametrize("key", ["source", "sources"])
def test_the_home_folder(folder: Path, experiment_data: Data, key: str) -> None:
    source: Any = {"path": "~/a.jsonl"}
    experiment_data["tasks"] = [{"name": "own", key: [source] if key == "sources" else source}]
    assert paths(load(folder, experiment_data)) == [f"{folder.parent}/home/a.jsonl"]


def test_the_base_model_the_output_and_the_test_sets(folder: Path, experiment_data: Data) -> None:
    experiment_data |= {
        "base_model": "./m",
        "output": "out",
        "decontaminate": ["a.jsonl", {"path": "~/b.jsonl"}],
        "benchmarks": ["toxigen", "tasks/a.yaml", {"task": "~/b.yml"}],
    }
    experiment = load(folder, experiment_data)
    assert str(Path(experiment.base_model.source).resolve()) == f"{folder}/m"
    assert experiment.output is not None
    assert str(Path(experiment.output.to).resolve()) == f"{folder}/out"
    assert [str(Path(each.path).resolve()) for each in experiment.decontaminate] == [
        f"{folder}/a.jsonl",
        f"{folder.parent}/home/b.jsonl",
    ]
    name, *own = (each.task for each in experiment.benchmarks)
    assert name == "toxigen"
    assert [str(Path(task).resolve()) for task in own] == [
        f"{folder}/tasks/a.yaml",
        f"{folder.parent}/home/b.yml",
    ]


@pytest.mark.parametrize(
    ("source", "base_model"),
    [("owner/data", "owner/model"), ("s3://b/k", "s3://b/m"), ("synthetic:format", "gpt2"), ("/a/b", "/a/m")],
)
def test_what_is_no_relative_path_stays(
    folder: Path, experiment_data: Data, source: str, base_model: str
) -> None:
    task = {"name": "own", "source": source, "limit": 9}
    experiment = load(folder, experiment_data | {"tasks": [task], "base_model": base_model})
    assert (experiment.tasks[0].sources[0].path, experiment.base_model.source) == (source, base_model)


def test_an_existing_folder_is_no_hub_id(folder: Path, experiment_data: Data) -> None:
    (folder / "owner" / "data").mkdir(parents=True)
    experiment_data["tasks"] = [{"name": "own", "source": "owner/data"}]
    assert paths(load(folder, experiment_data)) == [f"{folder}/owner/data"]


def test_options_are_relative_to_the_working_directory(folder: Path, experiment_data: Data) -> None:
    sets = ["base_model=./m", "output=~/out"]
    experiment = load(folder, experiment_data, tasks=["own=a.jsonl", "home=~/b.jsonl"], sets=sets)
    assert paths(experiment, 2) == [f"{folder.parent}/elsewhere/a.jsonl"]
    assert paths(experiment, 3) == [f"{folder.parent}/home/b.jsonl"]
    assert str(Path(experiment.base_model.source).resolve()) == f"{folder.parent}/elsewhere/m"
    assert experiment.output is not None
    assert experiment.output.to == f"{folder.parent}/home/out"


def test_a_pipe_has_no_folder(folder: Path, experiment_data: Data) -> None:
    """As of `--config <(...)`: the working directory takes its place."""
    experiment_data["tasks"] = [{"name": "own", "source": "a.jsonl"}]
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(yaml.safe_dump(experiment_data),))
    writer.start()
    experiment = load_experiment(file=pipe)
    writer.join()
    assert paths(experiment) == [f"{folder.parent}/elsewhere/a.jsonl"]


@pytest.mark.parametrize(
    "data", [{}, {"tasks": None}, {"tasks": [3]}, {"tasks": [{"source": 3}]}, {"output": []}]
)
def test_what_is_no_configuration_is_left_to_its_check(data: Data) -> None:
    before = repr(data)
    resolve_paths(data, Path("folder"))
    assert repr(data) == before


def test_a_run_elsewhere_reads_the_same_data(folder: Path, experiment_data: Data) -> None:
    from automixalign.preflight.validate import check_local_sources

    write_rows(folder / "a.jsonl", [conversation(str(number), "yes", "no") for number in range(9)])
    experiment_data["tasks"] = [{"name": "own", "source": "a.jsonl"}]
    check_local_sources(load(folder, experiment_data))


@pytest.mark.usefixtures("folder")
def test_a_missing_path_beside_the_configuration_is_no_hub_id(experiment_data: Data) -> None:
    experiment_data |= {"base_model": "./m", "tasks": [{"name": "own", "source": "./owner/data"}]}
    experiment = load(Path(), experiment_data)
    assert isinstance(parse_base_model(experiment.base_model.source), LocalSource)
    assert isinstance(parse_task("own", experiment.tasks[0].sources[0]), LocalSource)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("key", ["base_model", "tasks.0.source"])
def test_an_empty_path_is_refused(experiment_data: Data, key: str) -> None:
    override(experiment_data, key, "")
    with pytest.raises(ConfigError, match=key.split(".", 1)[0]):
        load(Path(), experiment_data)


def test_a_format_for_a_task_of_the_command_line(folder: Path, experiment_data: Data) -> None:
    experiment = load(folder, experiment_data, tasks=["own=a"], sets=["tasks.2.source.format=hh-rlhf"])
    assert experiment.tasks[2].sources[0].format_spec.name == "hh-rlhf"
