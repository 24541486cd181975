"""`ama chat` and `ama generate`: they answer as the evaluation does."""

import io
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from automixalign.data.store import TEST, read_split
from automixalign.models.load import load_tokenizer
from automixalign.steps.step import collect_warnings
from automixalign.storage import files
from pipelines.cli.chat import _Screen
from tests.inference.small_run import ADAPTER, OPENING, write_run
from tests.pipeline.conftest import Ama


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run folder, and what its stages warned of; tests must not change it."""
    folder = tmp_path_factory.mktemp("small") / "run"
    with collect_warnings() as warnings:
        write_run(folder)
    return folder, warnings


@pytest.fixture
def run(made: tuple[Path, list[str]]) -> Path:
    return made[0]


@pytest.fixture
def evaluated(run: Path) -> dict[str, str]:
    """Question -> what the evaluation generated for it, with a repetition penalty and another end."""
    pairs = {row["pair_id"]: row for row in read_split(run / "data", "arithmetic", TEST).to_pylist()}
    rows = files.read_jsonl(run / "evaluations" / ADAPTER / "generations.jsonl")
    return {pairs[row["pair_id"]]["prompt"][0]["content"]: row["output"] for row in rows}


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes lines to stdin."""
    return lambda *lines: monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_the_evaluation_starts_from_the_whole_prompt(run: Path) -> None:
    tokenizer = load_tokenizer(run / "models" / "reference")
    for row in read_split(run / "data", "arithmetic", TEST).to_pylist():
        assert tokenizer.decode(row["generation_ids"]).endswith(f"<|assistant|>{OPENING}")
        assert tokenizer.decode(row["prompt_ids"]).endswith("<|assistant|>")


def test_the_evaluation_says_what_bends_or_cuts_answers(made: tuple[Path, list[str]]) -> None:
    _, warnings = made
    assert any(warning.endswith("answers are cut at evaluation.max_new_tokens=24") for warning in warnings)
    assert any("its generation config sets repetition_penalty=1.1" in warning for warning in warnings)


def test_a_model_without_chat_template_takes_plain_text(ama: Ama, run: Path, tmp_path: Path, say: Any) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(run, plain)
    (plain / "models" / "reference" / "chat_template.jinja").unlink()
    (tmp_path / "lines.txt").write_text("12+3=\n")
    ended = ama("generate", plain, "reference", "-i", "lines.txt")
    assert "prompts of text are continued as they are" in ended.err
    assert rows_of(ended.out)[0]["output"]
    say("12+3=")
    assert "error: the model has no chat template" in ama("chat", plain, "reference").err


def test_generate_gives_the_answers_of_the_evaluation(
    ama: Ama, run: Path, tmp_path: Path, evaluated: dict[str, str]
) -> None:
    questions = [{"id": number, "prompt": text} for number, text in enumerate(evaluated)]
    questions[0]["prompt"] = [{"role": "user", "content": questions[0]["prompt"]}]
    files.write_jsonl(tmp_path / "questions.jsonl", questions)
    ended = ama("generate", run, ADAPTER, "--input", "questions.jsonl", "-o", "answers.jsonl")
    assert (ended.status, ended.out) == (0, "")
    answers = files.read_jsonl(tmp_path / "answers.jsonl")
    assert answers == [row | {"output": text} for row, text in zip(questions, evaluated.values(), strict=True)]
    assert len({*evaluated.values()}) > 1


def test_generate_reads_lines_and_writes_to_stdout(
    ama: Ama, run: Path, tmp_path: Path, evaluated: dict[str, str]
) -> None:
    question, expected = next(iter(evaluated.items()))
    (tmp_path / "lines.txt").write_text(f"{question}\n\n  {question}\n")
    ended = ama("generate", run, ADAPTER, "-i", "lines.txt", "--max-new-tokens", 3)
    assert [row["prompt"] for row in rows_of(ended.out)] == [question, f"  {question}"]
    assert rows_of(ended.out)[0]["output"] == expected[:3]
    assert ended.err.splitlines()[-1].startswith("2 of 2 answers are cut at 3 tokens")


def test_generate_takes_plain_text_and_a_temperature(ama: Ama, run: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("12+3=\n")
    outputs = {}
    for options in [(), ("--text", "plain"), ("--temperature", "3"), ("--temperature", "3", "--seed", "1")]:
        ended = ama("generate", run, ADAPTER, "-i", "lines.txt", *options)
        outputs[options] = rows_of(ended.out)[0]["output"]
    assert len({*outputs.values()}) == 4
    again = ama("generate", run, ADAPTER, "-i", "lines.txt", "--temperature", "3", "--seed", "1")
    assert rows_of(again.out)[0]["output"] == outputs["--temperature", "3", "--seed", "1"]


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (
            '{"prompt": "1+1="}\n{"prompt": 3}',
            "bad.jsonl:2: 'prompt' must be text or a list of messages, not 3",
        ),
        ('{"prompt": "1+1="}\n{"prompt"', "bad.jsonl:2: not a JSON document"),
        ('{"question": "1+1="}', "bad.jsonl:1: the field 'prompt' is missing; the row has: question"),
        ('{"prompt": " "}', "bad.jsonl:1: its prompt is empty"),
        ('{"prompt": [{"role": "assistant", "content": "x"}]}', "bad.jsonl:1: 'prompt' holds no user message"),
        ('{"prompt": "1+1=", "output": "2"}', "bad.jsonl:1: the row has a field 'output' already"),
        ("", "bad.jsonl holds no prompt"),
    ],
)
def test_generate_refuses_a_file_before_it_loads_the_model(
    ama: Ama, run: Path, tmp_path: Path, rows: str, problem: str
) -> None:
    (tmp_path / "bad.jsonl").write_text(rows)
    ended = ama("generate", run, ADAPTER, "-i", "bad.jsonl", "-o", "out.jsonl")
    assert ended.status == 2
    assert problem in ended.err
    assert not (tmp_path / "out.jsonl").exists()


def test_generate_refuses_an_output_it_cannot_write(ama: Ama, run: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("12+3=\n")
    ended = ama("generate", run, ADAPTER, "-i", "lines.txt", "-o", "absent/out.jsonl")
    assert (ended.status, "error: --output absent/out.jsonl: " in ended.err) == (2, True)


def test_chat_answers_each_line_and_remembers(ama: Ama, run: Path, evaluated: dict[str, str], say: Any) -> None:
    (first, answer), (second, _), *_ = evaluated.items()
    say(first, second, "/reset", second, "/exit", first)
    ended = ama("chat", run, ADAPTER)
    assert ended.status == 0
    lines = ended.out.splitlines()
    assert [lines[0], lines[2]] == [answer, evaluated[second]]
    assert lines[1] != lines[2], "the second answer follows a conversation"
    assert len(lines) == 3


def test_chat_compares_two_models_and_takes_a_system_message(
    ama: Ama, run: Path, evaluated: dict[str, str], say: Any
) -> None:
    (question, answer), *_ = evaluated.items()
    say(question)
    ended = ama("chat", run, ADAPTER, "--compare", "reference")
    first, second = ended.out.splitlines()
    assert first == f"{ADAPTER}: {answer}"
    assert second.startswith("reference: ") and second.removeprefix("reference: ") != answer
    say(question)
    kind = ama("chat", run, ADAPTER, "--system", "be kind").out.splitlines()
    assert kind != [answer]


def test_chat_without_a_model_needs_a_leaderboard(ama: Ama, run: Path) -> None:
    ended = ama("chat", run)
    assert ended.status == 2
    assert "has no leaderboard yet: name a model; there are: reference, uniform" in ended.err


def test_a_message_too_long_for_the_model_ends_a_script(ama: Ama, run: Path, say: Any) -> None:
    say("1" * 3000)
    ended = ama("chat", run, ADAPTER)
    assert ended.status == 2
    assert "leaves no room for an answer" in ended.err


def test_ctrl_c_ends_an_answer_and_not_the_chat(
    ama: Ama, run: Path, evaluated: dict[str, str], say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = _Screen._write

    def interrupt_once(self: _Screen, text: str) -> None:
        monkeypatch.setattr(_Screen, "_write", write)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(_Screen, "_write", interrupt_once)
    (question, answer), *_ = evaluated.items()
    say(question, question)
    ended = ama("chat", run, ADAPTER)
    assert (ended.status, "interrupted" in ended.err) == (0, False)
    assert ended.out.splitlines() == ["", "(ended; the message is not part of the conversation)", answer]
