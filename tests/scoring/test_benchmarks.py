"""Benchmarks: the stage against transformers alone, what is refused, and the cache key."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from automixalign.config.evaluation import BenchmarkSettings, BenchmarkSpec
from automixalign.models.generate import Decoding, generate
from automixalign.models.load import load_model, load_tokenizer
from automixalign.scoring.benchmarks.results import RESULTS, SAMPLES
from automixalign.scoring.benchmarks.run import run_benchmarks
from automixalign.scoring.benchmarks.tasks import check_benchmarks
from automixalign.steps.step import collect_warnings
from automixalign.storage import files
from automixalign.system.errors import ConfigError, DataError
from benchmarks import tiny
from tests.scoring.benchmark_tasks import QUESTIONS, write_choice, write_generation


def solve(folder: Path, *specs: BenchmarkSpec) -> dict[str, Any]:
    """Run the stage on the tiny world's model."""
    model = tiny.world().base_model
    checked = {"seed": 0, "batch_size": 5, "precision": "fp32", "fingerprint": ""}
    settings = BenchmarkSettings(benchmarks=list(specs), **checked)
    return run_benchmarks(settings, "m", "generalist", model, model, folder / "out")


def prompts() -> list[list[int]]:
    tokenizer = load_tokenizer(tiny.world().base_model)
    chats = [[{"role": "user", "content": row["question"]}] for row in QUESTIONS]
    texts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


@torch.no_grad()
def log_probability(model: Any, prompt: list[int], answer: list[int]) -> float:
    logps = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    return sum(float(logps[len(prompt) + at - 1, token]) for at, token in enumerate(answer))


def test_a_model_is_measured_as_transformers_alone_measures_it(tmp_path: Path) -> None:
    """The tasks are the user's own; prompts have the chat template, and nothing comes from a network."""
    choice = BenchmarkSpec(task=str(write_choice(tmp_path)), metric="acc_norm")
    answers = BenchmarkSpec(task=str(write_generation(tmp_path)), limit=7)
    results = solve(tmp_path, choice, answers)

    model, tokenizer = load_model(base := tiny.world().base_model, base), load_tokenizer(base)
    right = []
    for row, prompt in zip(QUESTIONS, prompts(), strict=True):
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in row["choices"]]
        logps = [log_probability(model, prompt, each) for each in ids]
        right.append(logps.index(max(logps)) == row["gold"])
    facts = results["benchmarks"]["choice"]
    assert facts["metrics"]["acc"] == pytest.approx(sum(right) / len(right))
    assert next(iter(facts["metrics"])) == "acc_norm", "the metric of the column comes first"
    assert 0 < facts["metrics"]["acc_stderr"] < 0.2
    assert (facts["versions"], facts["samples"], facts["chat_template"]) == ({"sums": 3.0}, {"sums": 12}, True)

    examples = files.read_jsonl(tmp_path / "out" / SAMPLES / "answers.jsonl")
    generated = generate(model, tokenizer, prompts()[:7], Decoding(6, batch_size=5))
    assert [each["resps"] for each in examples] == [[[answer.text.split("\n")[0]]] for answer in generated]
    passed = [
        each["resps"][0][0] == row["choices"][0] for each, row in zip(examples, QUESTIONS[:7], strict=True)
    ]
    assert results["benchmarks"]["answers"]["metrics"]["passed"] == sum(passed) / 7
    assert results["benchmarks"]["answers"]["samples"] == {"answers": 7}
    assert files.read_json(tmp_path / "out" / RESULTS) == results


def test_equal_seeds_give_equal_results(tmp_path: Path) -> None:
    """Solved examples are drawn from the seed."""
    path = write_choice(tmp_path, fewshot_split="test")
    first, again = (
        solve(tmp_path / name, BenchmarkSpec(task=str(path), num_fewshot=2, apply_chat_template=False))
        for name in ("first", "again")
    )
    assert first == again
    assert first["benchmarks"]["choice"]["num_fewshot"] == {"sums": 2}


def test_a_prompt_that_is_too_long_is_reported(tmp_path: Path) -> None:
    """lm-evaluation-harness cuts it and only logs it."""
    path = write_choice(tmp_path, description="long " * 5000)
    with collect_warnings() as warnings:
        solve(tmp_path, BenchmarkSpec(task=str(path), limit=1))
    (warning,) = warnings
    assert warning.startswith("benchmarks.0: choice: lm-evaluation-harness cut prompts from the left")


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"dataset_kwargs": {"data_files": "none.jsonl"}}, {}, "names data that do not exist"),
        ({"task": None}, {}, "has no key 'task' with a name"),
        ({"include": "none.yaml"}, {}, "cannot be read: FileNotFoundError"),
        ({"include": "choice.yaml"}, {}, "choice.yaml includes itself"),
        ({"unsafe_code": True}, {}, "choice runs code that the model writes, which this project never does"),
        ({"num_fewshot": 0}, {"num_fewshot": 1}, "benchmarks.0.num_fewshot: choice has no solved examples"),
    ],
)
def test_a_task_that_cannot_run_is_refused_before_any_work(
    tmp_path: Path, changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    spec = BenchmarkSpec(task=str(write_choice(tmp_path, **changes)), **options)
    with pytest.raises(ConfigError) as refused:
        check_benchmarks([spec])
    assert str(refused.value).startswith("benchmarks.0.")
    assert message in str(refused.value)


def test_a_file_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"benchmarks.0.task: .*/no.yaml does not exist"):
        check_benchmarks([BenchmarkSpec(task=str(tmp_path / "no.yaml"))])


@pytest.mark.slow
def test_names_are_checked_against_the_installed_tasks() -> None:
    """Finding the tasks takes many seconds."""
    for spec, message in (
        ({"task": "toxigenn"}, r"benchmarks.0.task: .* has no task 'toxigenn' \(did you mean 'toxigen'\?\)"),
        ({"task": "ai2_arc"}, r"ai2_arc has no score of its own.* name them: arc_challenge, arc_easy"),
        ({"task": "humaneval"}, "humaneval runs code that the model writes"),
        ({"task": "ifeval", "num_fewshot": 2}, "benchmarks.0.num_fewshot: ifeval has no solved examples"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_benchmarks([BenchmarkSpec.model_validate(spec)])
    known = ["ifeval", "gsm8k", "truthfulqa_mc2", "toxigen", "mmlu"]
    assert check_benchmarks([BenchmarkSpec(task=name) for name in known])


def test_without_the_extra_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"benchmarks: .* pip install 'automixalign\[bench\]'"):
        check_benchmarks([BenchmarkSpec(task="toxigen")])
    assert check_benchmarks([]) == ""


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"dataset_path": "org/none"}, {}, r"benchmarks.0: choice cannot be loaded: .*\n.*HF_HUB_OFFLINE"),
        (
            {"doc_to_text": "{{none.none}}"},
            {},
            r"benchmarks.0: choice cannot be loaded: UndefinedError.*\n.*columns that exist",
        ),
        ({}, {"metric": "f1"}, "benchmarks.0.metric: choice has no metric f1; there are: acc, acc_norm"),
    ],
)
def test_a_failure_of_the_stage_names_the_benchmark(
    tmp_path: Path, changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    spec = BenchmarkSpec(task=str(write_choice(tmp_path, **changes)), limit=1, **options)
    with pytest.raises((ConfigError, DataError), match=message):
        solve(tmp_path, spec)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "answers.yaml").open("a").write("# a comment\n"),
        lambda folder: (folder / "choice.yaml").open("a").write("# of an included file\n"),
        lambda folder: (folder / "checks.py").open("a").write("# of the code\n"),
        lambda folder: (folder / "data" / "questions.jsonl").open("a").write("{}\n"),
        lambda folder: (folder / "data" / "more.jsonl").write_text("{}\n"),
    ],
    ids=["task", "included", "code", "data", "more data"],
)
def test_every_file_of_a_task_is_in_the_cache_key(tmp_path: Path, change: Callable[[Path], object]) -> None:
    spec = BenchmarkSpec(task=str(write_generation(tmp_path)))
    (tmp_path / "beside.txt").write_text("not of the task")
    before = check_benchmarks([spec])
    (tmp_path / "beside.txt").write_text("changed")
    assert check_benchmarks([spec]) == before
    change(tmp_path)
    assert check_benchmarks([spec]) != before


def test_the_task_of_the_page(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    (task,) = re.findall(r"```yaml capitals.yaml\n(.*?)```", page, re.DOTALL)
    (row,) = re.findall(r"# ({.*})\n", task)
    (tmp_path / "capitals.yaml").write_text(task)
    (tmp_path / "capitals.jsonl").write_text(f"{row}\n" * 3)
    results = solve(tmp_path, BenchmarkSpec(task=str(tmp_path / "capitals.yaml")))
    assert results["benchmarks"]["capitals"]["samples"] == {"capitals": 3}
