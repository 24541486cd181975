"""`ama data`: what it shows of the sources, and of the pairs as the model sees them."""

import re
import shutil
import sys
import tempfile
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import tiny
from pipelines import cli
from tests.data.rows import conversation, write_rows
from tests.data.tokenizers_to_test import small_bpe
from tests.pipeline.conftest import Ama


@pytest.fixture
def own(tmp_path: Path, experiment_data: dict[str, Any]) -> Path:
    """A configuration of one task `own` with two sources: 12 rows, and a folder with 8 rows and a PDF."""
    rows = [conversation(f"say {number}", "yes", "no") for number in range(9)]
    rows += [rows[0], conversation("same", "z", "z"), conversation("long", "w" * 60, "no")]
    write_rows(tmp_path / "a.jsonl", rows)
    write_rows(tmp_path / "b" / "b.jsonl", [conversation(f"ask {number}", "yes", "no") for number in range(8)])
    (tmp_path / "b" / "paper.pdf").write_text("")
    path = tmp_path / "own.yaml"
    tasks = [{"name": "own", "sources": ["a.jsonl", "b"]}]
    path.write_text(yaml.safe_dump({**experiment_data, "merges": [], "tasks": tasks}))
    return path


def counts(shown: str) -> dict[str, list[int]]:
    """The lines of the tables: what they count, and the numbers."""
    lines = re.findall(r"^  (read|dropped: \w+|used: \w+) +([\d, ]+?) *$", shown, re.MULTILINE)
    return {title: [int(number) for number in numbers.split()] for title, numbers in lines}


def test_the_rows_of_each_source(ama: Ama, own: Path) -> None:
    ended = ama("data", "-c", own)
    assert ended.status == 0, ended.err
    shown = counts(ended.out)
    assert shown["read"] == [12, 8, 20]
    assert shown["dropped: identical_sides"] == [1, 0, 1]
    assert shown["dropped: duplicate"] == [1, 0, 1]
    assert shown["dropped: long_answer"] == [1, 0, 1]
    used = [shown[f"used: {split}"] for split in ("train", "validation", "test")]
    assert [sum(column) for column in zip(*used, strict=True)] == [9, 8, 17]


def test_too_long_answers_and_the_histogram_of_lengths(ama: Ama, own: Path) -> None:
    shown = ama("data", "-c", own).out
    assert "\n  answers that end after max_length=64: 1 chosen, 0 rejected, in 1 pairs " in shown
    bins = re.findall(r"^ +(> 64|\d+-\d+)(?: █+)? (\d+)$", shown, re.MULTILINE)
    assert sum(int(pairs) for _, pairs in bins) == 18
    assert bins[-1] == ("> 64", "1")


def test_files_that_are_not_read_are_named_and_each_warning_is_shown_once(ama: Ama, own: Path) -> None:
    ended = ama("data", "-c", own)
    assert re.search(r"^  not read: paper\.pdf \(.+\)$", ended.out, re.MULTILINE)
    warnings = re.findall(r"^warning: (.*)$", ended.out, re.MULTILINE)
    assert (
        len([each for each in warnings if "1 of 18 pairs (5.6%) have an answer that ends after" in each]) == 1
    )
    assert ended.err == ""


def test_a_pair_is_shown_as_its_tokens(ama: Ama, own: Path) -> None:
    shown = ama("data", "-c", own, "--rows", "1").out
    pattern = (
        r"\n  pair [0-9a-f]{16}\n"
        r"  prompt   \| <bos><\|user\|>(say|ask) \d<\|assistant\|>\n"
        r"  chosen   \| yes<eos>\n"
        r"  rejected \| no<eos>\n\n"
    )
    assert len(re.findall(pattern, shown)) == 1, shown
    assert shown.count("  pair ") == 1


def test_no_pairs_if_none_are_asked_for(ama: Ama, own: Path) -> None:
    shown = ama("data", "-c", own, "--rows", "0").out
    assert "used: train" in shown
    assert "prompt" not in shown.replace("tokens of prompt and longer answer", "")


def test_line_ends_are_marked_and_control_characters_escaped(ama: Ama, own: Path, tmp_path: Path) -> None:
    tokenizer = small_bpe()
    tiny.llama(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [conversation(f"{number}\nSay [red]\x1b[31m", "a\n\nb", "c\n") for number in range(9)]
    write_rows(tmp_path / "lines.jsonl", rows)
    shown = ama("data", "-c", own, "-t", "lines=lines.jsonl", "-n", 1, "-s", "base_model=model").out
    lines = shown[shown.index("  prompt") :].splitlines()
    assert re.fullmatch(r"  prompt   \| <\|user\|>\d↵", lines[0])
    assert lines[1:6] == [
        r"           | Say [red]\x1b[31m</s><|assistant|>",
        "  chosen   | a↵",
        "           | ↵",
        "           | b</s>",
        "  rejected | c↵",
    ]
    assert lines[6] == "           | </s>"


def test_swapped_pairs_are_marked(ama: Ama, own: Path) -> None:
    shown = ama("data", "-c", own, "--rows", "20", "-s", "tasks.0.label_noise=0.5").out
    swapped = re.findall(r"pair \w+, sides swapped by label_noise\n.*\n  chosen   \| no<eos>\n", shown)
    assert len(swapped) == round(counts(shown)["used: train"][-1] / 2)
    assert f"label_noise swaps the sides of {len(swapped)} training pairs" in shown


def test_a_selected_task_is_shown_alone(ama: Ama, config: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [conversation(str(number), "yes", "no") for number in range(9)])
    ended = ama("data", "-c", config, "--task", "format", "-t", "new=a.jsonl")
    assert ended.status == 0, ended.err
    assert re.findall(r"^(\w+)$", ended.out, re.MULTILINE) == ["format", "new"]
    assert len(re.findall(r"^(\w+)$", ama("data", "-c", config).out, re.MULTILINE)) == 2


def test_a_task_that_does_not_exist_is_refused(ama: Ama, config: Path) -> None:
    ended = ama("data", "-c", config, "--task", "fromat")
    assert (ended.status, ended.out) == (2, "")
    problem = "there is no such task (did you mean 'format'?); there are: arithmetic, format"
    assert ended.err == f"error: --task fromat: {problem}\n"


def test_it_leaves_no_file(
    ama: Ama,
    own: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scratch, before = tmp_path_factory.mktemp("scratch"), sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    assert ama("data", "-c", own).status == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert list(scratch.iterdir()) == []


def test_a_terminal_with_few_characters(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path / "a.jsonl", [conversation(f"日 {number}", "yes\n", "no") for number in range(9)])
    shown = TextIOWrapper(BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setattr(sys, "argv", ["ama", "data", "-c", str(own)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    shown.seek(0)
    text = shown.read()
    assert "###" in text
    assert "ends a line" in text


def test_data_and_tokenizer_on_s3(ama: Ama, own: Path, base_model: Path, tmp_path: Path, s3: Any) -> None:
    s3.create_bucket(Bucket="look")
    for file in base_model.iterdir():
        s3.upload_file(str(file), "look", f"model/{file.name}")
    s3.upload_file(str(tmp_path / "b" / "b.jsonl"), "look", "b.jsonl")
    shutil.rmtree(tmp_path / "b")
    sets = ["-s", "base_model=s3://look/model", "-s", "tasks.0.sources.1=s3://look/b.jsonl"]
    ended = ama("data", "-c", own, *sets)
    assert ended.status == 0, ended.err
    assert counts(ended.out)["read"] == [12, 8, 20]
    assert "<|assistant|>" in ended.out


def test_colours_tell_the_parts_of_a_pair(ama: Ama, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR")
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    shown = ama("data", "-c", own, "--rows", "1").out
    for label, code in (("prompt  ", 2), ("chosen  ", 32), ("rejected", 31)):
        assert re.search(rf"  {label} \| \x1b\[{code}m[^\n]+\x1b\[0m\n", shown), label
