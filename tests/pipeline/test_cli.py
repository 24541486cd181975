"""The command line: what it prints, what it refuses, and its exit statuses."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from automixalign import __version__
from automixalign.config.experiment import parse_experiment
from automixalign.storage import files
from pipelines import cli
from pipelines.cli.options import load_experiment, new_run_folder
from tests.pipeline.conftest import Ama, Ended

ROW = '{"prompt": "p", "chosen": "a", "rejected": "b"}\n'


def test_version(ama: Ama) -> None:
    assert ama("--version") == Ended(0, f"automixalign {__version__}\n", "")


def test_the_installed_command(tmp_path: Path) -> None:
    """As a user runs it, once: a refusal is one message without traceback, markup or colour codes."""
    command = [Path(sys.executable).with_name("ama"), "validate", "--preset", "quickstart"]
    command += ["--set", "training.beta=[0]"]
    environment = {**os.environ, "NO_COLOR": "1"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    first, second = ended.stderr.splitlines()[-2:]
    assert first == "error: --preset quickstart cannot be run:"
    assert second.startswith("training.beta: ")
    assert "Traceback" not in ended.stderr


def test_the_command_line_imports_nothing_heavy() -> None:
    code = "import sys; import pipelines.cli; print({'torch', 'kfp', 'pydantic', 'mlflow'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


@pytest.mark.parametrize(
    ("arguments", "examples"),
    [
        ([], ["ama run --preset quickstart", "ama validate --config my.yaml"]),
        (["run"], ["ama run --preset quickstart", "--set methods.ama-r.eta=0.1 --output runs/eta"]),
        (["validate"], ["ama validate --preset quickstart --set training.beta=0.2"]),
        (["data"], ["ama data --config my.yaml --task helpful --rows 5"]),
        (
            ["compile"],
            ["ama compile --config my.yaml --output my-pipeline.yaml", "ama compile --config my.yaml --bytes"],
        ),
    ],
)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_shows_examples_and_explains_their_options(
    ama: Ama, arguments: list[str], examples: list[str], flag: str
) -> None:
    ended = ama(*arguments, flag)
    assert ended.status == 0
    for example in examples:
        assert example in ended.out
    if arguments:
        lines = ended.out.splitlines()
        example_lines = [line for line in lines if f"ama {arguments[0]} -" in line]
        used = {word for line in example_lines for word in line.split() if word.startswith("-")}
        used |= {"--preset", "--config", "--task", "--set"}
        explained = " ".join(line for line in lines if line not in example_lines)
        assert [option for option in used if not re.search(rf"(?<!\S){option}(?!\S)", explained)] == []


def test_validate_prints_a_configuration_that_parses_again(ama: Ama, config: Path, tmp_path: Path) -> None:
    sets = ["--set", "training.beta=0.25", "-s", "methods.1.c=1e-1", "--set", "seed=3"]
    first = ama("validate", "--config", config, *sets)
    assert first.status == 0, first.err
    experiment = parse_experiment(yaml.safe_load(first.out), "printed")
    assert (experiment.training.beta, experiment.methods[1].c, experiment.seed) == (0.25, 0.1, 3)
    (tmp_path / "again.yaml").write_text(first.out)
    assert ama("validate", "--config", "again.yaml") == first


def test_validate_prints_every_default(ama: Ama) -> None:
    printed = yaml.safe_load(ama("validate", "--preset", "quickstart").out)
    assert printed == json.loads(load_experiment("quickstart").model_dump_json())
    assert "warmup_steps" in printed["training"]


def test_tasks_from_the_command_line(ama: Ama, config: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    rows = "".join(ROW.replace('"p"', f'"{number}"') for number in range(3))
    for name in ("a=b.jsonl", "new/x.jsonl"):
        (tmp_path / name).write_text(rows)
    ended = ama("validate", "-c", config, "-t", "format=a=b.jsonl", "--task", "new=./new")
    assert ended.status == 0, ended.err
    tasks = yaml.safe_load(ended.out)["tasks"]
    assert [(task["name"], task["sources"][0]["path"]) for task in tasks] == [
        ("arithmetic", "synthetic:arithmetic"),
        ("format", "a=b.jsonl"),
        ("new", "new"),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: give one of --preset NAME and --config FILE; presets: quickstart, qwen3-lora"),
        (["-p", "quickstart", "-c", "x.yaml"], "error: give one of --preset NAME and --config FILE"),
        (
            ["-p", "quikstart"],
            "error: --preset quikstart: there is no such preset (did you mean 'quickstart'?); there are: ",
        ),
        (["-p", "../presets/quickstart"], "error: --preset ../presets/quickstart: there is no such preset"),
        (["-c", "missing.yaml"], "error: missing.yaml cannot be read: "),
        (["-c", "."], "error: . cannot be read: "),
        (["-p", "smollm2"], "tasks: at least one is needed (on the command line: --task NAME=PATH)"),
        (["-p", "quickstart", "-s", "seed"], "error: --set seed: must be of the form KEY=VALUE"),
        (["-p", "quickstart", "-s", "seed="], "error: --set seed=: must be of the form KEY=VALUE"),
        (["-p", "quickstart", "-s", "=1"], "error: --set =1: must be of the form KEY=VALUE"),
        (["-p", "quickstart", "-s", "seed=[1"], "error: --set seed: '[1' cannot be read as YAML: "),
        (
            ["-p", "quickstart", "-s", "seed=2024-13-01"],
            "error: --set seed: '2024-13-01' cannot be read as YAML",
        ),
        (["-p", "quickstart", "-s", "seed={a: 1, a: 2}"], "the key 'a' appears twice"),
        (["-p", "quickstart", "-s", "sed=1"], "\nsed: unknown key"),
        (["-p", "quickstart", "-s", "seed=one"], "\nseed: Input should be a valid integer (it is 'one')"),
        (
            ["-p", "quickstart", "-s", "methods.99.eta=1"],
            "error: --set methods.99.eta: the configuration has no such key; methods holds: standard, ",
        ),
        (["-p", "quickstart", "-t", "new"], "error: --task new: must be of the form KEY=VALUE"),
        (["-p", "quickstart", "-t", "new="], "error: --task new=: must be of the form KEY=VALUE"),
        (["-p", "quickstart", "-t", "../x=a.jsonl"], ".name: String should match pattern"),
        (["-p", "quickstart", "-t", "new=missing.jsonl"], "error: task new: missing.jsonl does not exist"),
        (["-p", "quickstart", "-t", "new=s3:///key"], "error: s3:///key is not of the form s3://bucket/key"),
        (
            ["-p", "smollm2", "-t", "new=.", "-s", "base_model=./m.gguf"],
            "error: base_model.source: m.gguf does not exist",
        ),
    ],
)
@pytest.mark.parametrize("command", ["validate", "run"])
def test_refusals(ama: Ama, tmp_path: Path, command: str, arguments: list[str], message: str) -> None:
    ended = ama(command, *arguments)
    assert (ended.status, ended.out) == (2, "")
    assert message in ended.err
    assert ended.err.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["validate", "run"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ROW + '{"chosen": "a"}\n', "error: task format: bad.jsonl:2: the field 'rejected' is missing"),
        (ROW + "\n{\n", "error: task format: bad.jsonl:3: not a JSON document: "),
        ("", "error: task format: bad.jsonl holds no usable pair "),
    ],
)
def test_broken_data_is_refused_before_the_run(
    ama: Ama, config: Path, tmp_path: Path, command: str, text: str, message: str
) -> None:
    (tmp_path / "bad.jsonl").write_text(text)
    ended = ama(command, "-c", config, "-t", "format=bad.jsonl")
    assert ended.status == 2
    assert ended.err.startswith(message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "my.yaml"]


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_says_so_in_one_line(tmp_path: Path, sent: signal.Signals, status: int) -> None:
    """The command waits for its configuration, which comes through a pipe."""
    pipe = tmp_path / "my.yaml"
    os.mkfifo(pipe)
    code = "from pipelines.cli import main; main()"
    command = [sys.executable, "-c", code, "validate", "--config", str(pipe)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with pipe.open("w"):  # blocks until the command reads
        process.send_signal(sent)
        assert process.communicate(timeout=60) == ("", "interrupted\n")
    assert process.returncode == status


def test_runs_of_one_second_get_folders_of_their_own(
    tmp_path: Path, experiment_data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "20250101-120000")
    experiment = parse_experiment(experiment_data, "test")
    with ThreadPoolExecutor(4) as pool:
        folders = sorted(map(str, pool.map(lambda _: new_run_folder(experiment), range(4))))
    name = f"runs/{experiment.name}-20250101-120000"
    assert folders == [name, f"{name}-2", f"{name}-3", f"{name}-4"]


def test_brackets_in_a_refusal_are_not_markup(ama: Ama) -> None:
    assert "--preset [bold]x[/]: there is no such preset" in ama("validate", "-p", "[bold]x[/]").err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["validate", "--sed", "1"], "No such option: --sed"),
        (["validate", "-p"], "Option '-p' requires an argument"),
        (["validate", "unexpected"], "Got unexpected extra argument"),
        (["rnu"], "No such command 'rnu'"),
    ],
)
def test_usage_errors(ama: Ama, arguments: list[str], message: str) -> None:
    ended = ama(*arguments)
    assert (ended.status, ended.out) == (2, "")
    assert message in ended.err


@pytest.mark.parametrize("notes", ["out/notes.txt", "out"], ids=["folder", "file"])
def test_run_refuses_an_output_that_exists(ama: Ama, config: Path, tmp_path: Path, notes: str) -> None:
    (tmp_path / notes).parent.mkdir(exist_ok=True)
    (tmp_path / notes).write_text("mine")
    ended = ama("run", "-c", config, "--output", "out")
    assert ended.status == 2
    assert "error: --output out exists and is not an empty folder; name a new folder" in ended.err
    assert (tmp_path / notes).read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my.yaml", "out"]


def test_run_refuses_an_output_that_cannot_be_written_to(ama: Ama, config: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = ama("run", "-c", config, "--output", "file/out")
    assert ended.status == 2
    assert "error: --output file/out cannot be written to: " in ended.err


def test_run_refuses_what_only_a_cluster_can_do(ama: Ama, config: Path, tmp_path: Path) -> None:
    sets = ["training.nodes=2", "training.batch_size=16", "cluster.train_job={storage: 's3://bucket/jobs'}"]
    ended = ama("run", "-c", config, "--output", "out", *[part for value in sets for part in ("--set", value)])
    assert ended.status == 2
    assert "training.nodes: 2 nodes need a cluster with Kubeflow Trainer" in ended.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["pipeline.json", "pipeline", "file/pipeline.yaml"])
def test_compile_refuses(ama: Ama, config: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    ended = ama("compile", "-c", config, "--output", name)
    assert ended.status == 2
    assert f"error: --output {name}" in ended.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", config.name]


def test_compile_shows_the_copies_of_models(ama: Ama, config: Path, tmp_path: Path) -> None:
    ended = ama("compile", "-c", config, "--bytes")
    assert ended.status == 0
    assert re.search(r"reference_logps +1 +1 +0 *\n", ended.out)
    assert re.search(r"a model has [\d.]+ [kM]B; all models: [\d.]+ [kM]B downloaded, ", ended.out)
    assert [path.name for path in tmp_path.iterdir()] == [config.name]


def test_compile_without_a_file_needs_bytes(ama: Ama, config: Path) -> None:
    ended = ama("compile", "-c", config)
    assert (ended.status, ended.err) == (2, "error: give --output FILE.yaml, or --bytes\n")


def test_compile_writes_a_pipeline_and_warns_about_a_tag(ama: Ama, config: Path, tmp_path: Path) -> None:
    ended = ama("compile", "-c", config, "--output", "pipeline.yaml")
    assert ended.status == 0
    assert "warning: the image automixalign:" in ended.err
    assert "name it by digest (AMA_IMAGE=" in ended.err
    (pipeline, *_) = yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text())
    assert list(pipeline["root"]["inputDefinitions"]["parameters"]) == ["config"]


LATIN_1 = {
    "validate": ("validate", "-c", "my.yaml", "-t", "own=→.jsonl"),
    "data": ("data", "-c", "my.yaml", "-t", "own=→.jsonl"),
    "run": ("run", "-c", "→.yaml"),
    "compile": ("compile", "-c", "my.yaml", "-o", "→"),
    "submit": ("submit", "-c", "my.yaml", "--set", "name=→"),
    "report": ("report", "→"),
    "chat": ("chat", "→"),
    "generate": ("generate", "→", "model", "-i", "prompts.txt"),
    "sync": ("sync", "→"),
}


@pytest.mark.parametrize("command", LATIN_1)
def test_a_character_that_the_terminal_lacks_becomes_an_escape(
    command: str, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"{number} →", "chosen": "a", "rejected": "b"} for number in range(30)]
    files.write_jsonl(tmp_path / "→.jsonl", rows)
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="latin-1") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    monkeypatch.setattr(sys, "argv", ["ama", *LATIN_1[command]])
    with pytest.raises(SystemExit) as end:
        cli.main()
    printed = "".join(map(read_again, streams.values()))
    assert "\\u2192" in printed
    assert (end.value.code == 0) == (command in ("validate", "data")), printed


def read_again(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()
