"""`ama init`: a configuration that fits the data and the base model, and is valid as it is."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from automixalign.storage import files
from tests.data.rows import conversation, write_rows
from tests.faults.command_line import ama as ama_process
from tests.pipeline.conftest import Ama

WORDS = [f"word {number}" for number in range(30)]


@pytest.fixture
def tasks(tmp_path: Path) -> list[str]:
    """Options for four tasks: messages, plain texts, dialogues, and ratings; each with 30 prompts."""
    rows: dict[str, list[dict[str, Any]]] = {
        "messages": [conversation(f"say {word}", "yes", "no") for word in WORDS],
        "texts": [{"prompt": f"text {word}", "chosen": "a", "rejected": "b", "answer": "a"} for word in WORDS],
        "dialogues": [
            {side: f"\n\nHuman: {word}?\n\nAssistant: {side}" for side in ("chosen", "rejected")}
            for word in WORDS
        ],
        "ratings": [{"prompt": f"rate {word}", "completions": ["x", "yy"], "scores": [1, 5]} for word in WORDS],
    }
    for name, each in rows.items():
        write_rows(tmp_path / f"{name}.jsonl", each)
    return [part for name in rows for part in ("--task", f"{name}={name}.jsonl")]


def test_it_finds_formats_and_passes_validation_and_the_schema(
    ama: Ama, tasks: list[str], base_model: Path, tmp_path: Path
) -> None:
    ended = ama("init", *tasks, "--base-model", base_model, "--gpus", 0)
    assert ended.status == 0, ended.err
    text = (tmp_path / "my.yaml").read_text()
    data = yaml.safe_load(text)
    assert [task["source"] for task in data["tasks"]] == [
        "messages.jsonl",
        {"path": "texts.jsonl", "format": "chat"},
        {"path": "dialogues.jsonl", "format": "hh-rlhf"},
        {"path": "ratings.jsonl", "format": "ratings"},
    ]
    assert text.count("30 usable pairs") == 4
    assert text.count("# verifier: exact") == 1, "the rows of `texts` alone have answers"
    assert "no pair is longer" in text
    assert "lora" not in data["training"], "the model is small"
    header = text.splitlines()[0].removeprefix("# yaml-language-server: $schema=")
    schema = json.loads((tmp_path / header).read_text())
    assert list(Draft202012Validator(schema).iter_errors(data)) == []
    valid = ama("validate", "--config", "my.yaml")
    assert valid.status == 0, valid.err
    for setting in [
        line for line in text.splitlines() if line.startswith(("max_length", "split", "  batch_size"))
    ]:
        assert "  # " in setting


def test_a_file_that_exists_is_replaced_only_on_request(
    ama: Ama, tasks: list[str], base_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "my.yaml").write_text("mine")
    refused = ama("init", *tasks, "-m", base_model)
    assert (refused.status, (tmp_path / "my.yaml").read_text()) == (2, "mine")
    assert "error: --output my.yaml exists: name another file, or give --force" in refused.err
    assert ama("init", *tasks[:2], "-m", base_model, "--gpus", 0, "--force").status == 0
    assert (tmp_path / "my.yaml").read_text() != "mine"


def test_on_a_terminal_it_asks_for_what_is_missing_and_again_for_what_it_cannot_read(
    ama: Ama, tasks: list[str], base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path / "other.jsonl", [{"ask": word, "good": "a", "bad": "b"} for word in WORDS])
    wrong = ["messages", "messages=mesages.jsonl", "other=other.jsonl", "ask", "good", "worse"]
    right = ["messages=messages.jsonl", "other=other.jsonl", "ask", "good", "bad", "", "0"]
    answers = io.StringIO("\n".join([str(base_model), *wrong, *right, ""]))
    monkeypatch.setattr(sys, "stdin", answers)
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    ended = ama("init", "--output", "asked.yaml")
    assert ended.status == 0, ended.err
    data = yaml.safe_load((tmp_path / "asked.yaml").read_text())
    mapping = {"prompt": "ask", "chosen": "good", "rejected": "bad"}
    assert data["tasks"] == [
        {"name": "messages", "source": "messages.jsonl"},
        {"name": "other", "source": {"path": "other.jsonl", "columns": mapping}},
    ]
    for fault in ("of the form NAME=PATH", "mesages.jsonl does not exist", "column 'worse' of 'columns' is"):
        assert fault in ended.err
    assert (data["name"], data["base_model"]) == ("asked", str(base_model))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: --task NAME=PATH is needed, at least once"),
        (["-t", "a"], "error: --task a: must be of the form NAME=PATH"),
        (["-t", "a=missing.jsonl", "-m", "tiny"], "error: task a: missing.jsonl does not exist"),
        (
            ["-t", "a=odd.jsonl", "-m", "tiny"],
            "its columns are good, bad. Map the prompt and the answers to them: --task",
        ),
        (["-t", "a b=odd.jsonl", "-m", "tiny"], "tasks.0.name: String should match pattern"),
        (["-t", "a=odd.jsonl", "-t", "a=odd.jsonl"], "error: --task: two tasks have one name"),
        (["-t", "a=odd.jsonl", "-m", "./nowhere"], "nowhere does not exist"),
        (["-o", "my.json"], "error: --output my.json: the name must end in .yaml"),
    ],
)
def test_refusals_write_nothing(ama: Ama, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "odd.jsonl").write_text('{"good": "a", "bad": "b"}\n')
    ended = ama("init", *arguments)
    assert ended.status == 2
    assert message in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["odd.jsonl"]


def test_a_large_model_on_gpus_that_is_not_here(ama: Ama, tasks: list[str], tmp_path: Path) -> None:
    """Its name tells the size; data on a network is not read. Paths are relative to the configuration."""
    sources = [*tasks[:2], "--task", "remote=org/pairs"]
    model = ["--base-model", "org/Chat-7B-Instruct", "--gpus", 8]
    (tmp_path / "configs").mkdir()
    ended = ama("init", *sources, *model, "--output", "configs/big.yaml")
    assert ended.status == 0, ended.err
    text = (tmp_path / "configs" / "big.yaml").read_text()
    data = yaml.safe_load(text)
    assert "7.0 billion, by its name" in text
    assert "on a network, not read here" in text
    assert data["tasks"][0]["source"] == str(tmp_path / "messages.jsonl")
    training = data["training"]
    assert (training["processes"], training["lora"]["rank"], training["gradient_checkpointing"]) == (
        8,
        16,
        True,
    )
    assert training["batch_size"] % (8 * training.get("micro_batch_size", 1)) == 0


@pytest.mark.slow
def test_from_data_to_a_leaderboard(tasks: list[str], base_model: Path, tmp_path: Path) -> None:
    config = tmp_path / "my.yaml"
    options = [option.replace("=", f"={tmp_path}/") for option in tasks[:4]]
    done = ama_process("init", *options, "--base-model", base_model, "--output", config)
    assert done.returncode == 0, done.stderr
    done = ama_process("run", "--config", config, "--output", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    models = {entry["model"] for entry in files.read_json(tmp_path / "run" / "leaderboard.json")}
    assert models >= {"standard", "uniform", "ama-r", "ama-s", "linear", "ties"}
