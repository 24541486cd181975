"""`ama validate`: what it reads on this machine, and what it says of it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from automixalign.config.experiment import parse_experiment
from tests.data.rows import conversation, write_rows
from tests.pipeline.conftest import Ama
from tests.scoring.benchmark_tasks import write_generation


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """40 rows, four of them with an answer of more than 64 characters."""
    rows = [conversation(f"ask {number}", "w" * (70 if number < 4 else 3), "no") for number in range(40)]
    return write_rows(tmp_path / "own.jsonl", rows)


@pytest.mark.usefixtures("rows")
def test_stdout_is_the_configuration_and_stderr_ends_with_valid(ama: Ama, config: Path) -> None:
    ended = ama("validate", "-c", config, "-t", "own=own.jsonl")
    assert ended.status == 0, ended.err
    parse_experiment(yaml.safe_load(ended.out), "printed")
    assert ended.err.splitlines()[-1] == "valid"


@pytest.mark.usefixtures("rows")
def test_the_pairs_of_each_task_and_its_too_long_answers(ama: Ama, config: Path) -> None:
    err = ama("validate", "-c", config, "-t", "own=own.jsonl").err
    assert "task format: 16 train, 2 validation, 2 test pairs\n" in err
    assert "task own: 28 train, 4 validation, 4 test pairs; 4 have an answer that is too long (long" in err
    assert "warning: task own: 4 of 40 pairs (10.0%) have an answer that ends after max_length=64 " in err


@pytest.mark.usefixtures("rows")
def test_the_steps_of_each_training(ama: Ama, config: Path) -> None:
    sets = ["-s", "budget.specialist={epochs: 2}", "-s", "specialist_losses.cross_fit=true"]
    err = ama("validate", "-c", config, "-t", "own=own.jsonl", *sets).err
    (line,) = (line for line in err.splitlines() if line.startswith("optimiser steps: "))
    steps = dict(each.rsplit(" ", 1) for each in line.removeprefix("optimiser steps: ").split("; "))
    assert steps["specialist-own"] == "14", "28 pairs twice, 4 a step"
    assert steps["specialist-own, half 1"] == steps["specialist-own, half 2"] == "7"
    assert steps["standard"] == "3"


def test_a_pair_far_down_that_the_template_refuses(
    ama: Ama, config: Path, base_model_copy: Path, tmp_path: Path
) -> None:
    template = base_model_copy / "chat_template.jinja"
    refusal = "{% if 'ask 39' in messages[0]['content'] %}{{ raise_exception('not this') }}{% endif %}"
    template.write_text(refusal + template.read_text())
    write_rows(tmp_path / "own.jsonl", [conversation(f"ask {number}", "yes", "no") for number in range(40)])
    ended = ama("validate", "-c", config, "-t", "own=own.jsonl", "-s", f"base_model={base_model_copy}")
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith("error: task own: the chat template refuses")
    assert "not this" in ended.err


@pytest.mark.usefixtures("rows")
def test_a_source_on_s3_is_named_but_not_read(ama: Ama, config: Path, rows: Path, s3: Any) -> None:
    s3.create_bucket(Bucket="validated")
    s3.upload_file(str(rows), "validated", "far.jsonl")
    sets = ["-s", "budget.generalist={epochs: 1}"]
    ended = ama("validate", "-c", config, "-t", "own=own.jsonl", "-t", "far=s3://validated/far.jsonl", *sets)
    assert ended.status == 0, ended.err
    assert (
        "task far: s3://validated/far.jsonl is on a network and was not read: `ama data` reads it\n"
        in ended.err
    )
    assert "task own: 28 train" in ended.err
    assert "standard ?" in ended.err, "its steps depend on the pairs of all tasks"


@pytest.mark.usefixtures("rows")
def test_without_the_tokenizer_the_rows_are_read(
    ama: Ama, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    ended = ama("validate", "-c", config, "-t", "own=own.jsonl", "-s", "base_model=owner/model")
    assert ended.status == 0, ended.err
    assert (
        "task own: 40 usable pairs; their lengths are unknown, because the base model is not on " in ended.err
    )
    (tmp_path / "own.jsonl").write_text('{"chosen": "a"}')
    ended = ama("validate", "-c", config, "-t", "own=own.jsonl", "-s", "base_model=owner/model")
    assert ended.status == 2
    assert "own.jsonl:1: the field 'rejected' is missing" in ended.err


@pytest.mark.usefixtures("rows")
def test_the_estimate(ama: Ama, config: Path) -> None:
    ended = ama("validate", "-c", config, "-t", "own=own.jsonl", "--estimate")
    assert ended.status == 0, ended.err
    parse_experiment(yaml.safe_load(ended.out), "printed")
    lines = [line.split() for line in ended.err.splitlines()]
    (own,) = (line for line in lines if line[:1] == ["specialist-own"])
    # Four pairs a step; a pair has a prompt of 9 or 8 tokens twice, `www` and `no` with their ends.
    assert own[1] == "2"
    assert 4 * (2 * 8 + 7) <= int(own[2]) <= 4 * (2 * 9 + 7)
    assert "measured on cpu, with random weights: " in ended.err
    assert ended.err.endswith("\nvalid\n")


def test_an_estimate_needs_everything_here(ama: Ama, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    ended = ama("validate", "-c", config, "-s", "tasks.1.source=owner/data", "--estimate")
    assert (ended.status, ended.out) == (2, "")
    assert "task format: owner/data is on a network; download it, and name its folder" in ended.err


@pytest.mark.usefixtures("rows")
def test_the_code_of_a_benchmark_is_named(ama: Ama, config: Path, tmp_path: Path) -> None:
    path = write_generation(tmp_path / "tasks")
    ended = ama("validate", "-c", config, "-t", "own=own.jsonl", "-s", "benchmarks=[tasks/answers.yaml]")
    assert ended.status == 0, ended.err
    assert (
        f"benchmarks: {path} names code of yours, which the stage runs: {path.parent}/checks.py\n" in ended.err
    )
