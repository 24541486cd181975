"""Preference data: read from every form, refused by line, cleaned, split by prompt, tokenised as TRL does."""

import json
import math
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from automixalign.config.data import DataSettings, SplitSpec, TaskSpec
from automixalign.config.sources import parse_task
from automixalign.data import clean as cleaning
from automixalign.data import split as splitting
from automixalign.data.pairs import Pair, parse_row, text_of
from automixalign.data.read import Row, _read_hub, read_rows
from automixalign.data.store import SPLITS, read_card, read_split, split_path, task_digest, tasks_of
from automixalign.data.tokens import Tokens
from automixalign.data.tokens import tokenize as tokenize_all
from automixalign.storage import files
from automixalign.system.errors import DataError, ModelError
from benchmarks import tiny

Data = dict[str, Any]
Turns = list[dict[str, str]]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def conversation(prompt: str, chosen: str, rejected: str, **more: Any) -> Data:
    return {
        "prompt": [user(prompt)],
        "chosen": [assistant(chosen)],
        "rejected": [assistant(rejected)],
        **more,
    }


def plain(prompt: str, chosen: str, rejected: str, **more: Any) -> Data:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def parsed(data: Any) -> Pair:
    return parse_row(Row("file.jsonl:7", data))


def clean(rows: Iterable[Row]) -> tuple[list[Pair], Counter[str]]:
    everything = list(map(parse_row, rows))
    pairs, counts = cleaning.clean(everything, 0, everything)
    return list(pairs), counts


def split_tasks(tasks: dict[str, list[Pair]], spec: SplitSpec, seed: int) -> dict[str, dict[str, list[Pair]]]:
    """{task: {split: pairs}}"""
    found: dict[str, dict[str, list[Pair]]] = {}
    ranks = {
        task: np.array([cleaning.rank(seed, pair.prompt_key) for pair in pairs], dtype="S16")
        for task, pairs in tasks.items()
    }
    labels = splitting.split_tasks({task: np.sort(each) for task, each in ranks.items()}, spec)
    for task, pairs in tasks.items():
        order = np.argsort(ranks[task], kind="stable")
        found[task] = {
            name: [pairs[place] for place in order[labels[task] == number]]
            for number, name in enumerate(SPLITS)
        }
    return found


def tokenize(tokenizer: Any, pair: Pair, max_length: int) -> Tokens | None:
    (((_, tokens),),) = tokenize_all(tokenizer, [pair], max_length)
    return tokens


def cleaned(*rows: Data) -> tuple[list[Pair], Counter[str]]:
    return clean(Row(f"file.jsonl:{number}", row) for number, row in enumerate(rows, start=1))


def jsonl(path: Path, rows: list[Data]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(source: Path | str) -> list[Row]:
    return list(read_rows(TaskSpec(name="task", source=str(source)), seed=0))


# The forms of a row


def test_conversation_with_prompt() -> None:
    pair = parsed(conversation("hi", "yes", "no", answer="yes", other=1))
    assert (pair.prompt, pair.chosen, pair.rejected) == ([user("hi")], [assistant("yes")], [assistant("no")])
    assert pair.answer == "yes"
    assert pair.prompt_key == "user: hi"


def test_conversation_with_the_prompt_in_both_sides() -> None:
    start = [system("s"), user("one"), assistant("two"), user("three")]
    pair = parsed({"chosen": [*start, assistant("yes")], "rejected": [*start, assistant("no")]})
    assert (pair.prompt, pair.chosen, pair.rejected) == (start, [assistant("yes")], [assistant("no")])
    assert pair.pair_id == parsed({"prompt": start, "chosen": pair.chosen, "rejected": pair.rejected}).pair_id


def test_conversations_that_part_early() -> None:
    """What follows the first difference belongs to the sides, also where they are equal again."""
    chosen = [user("q"), assistant("a"), user("more"), assistant("end")]
    rejected = [user("q"), assistant("b"), user("more"), assistant("end")]
    pair = parsed({"chosen": chosen, "rejected": rejected})
    assert (pair.prompt, pair.chosen, pair.rejected) == (chosen[:1], chosen[1:], rejected[1:])


def test_extra_keys_of_a_message_are_left_out() -> None:
    row = conversation("hi", "yes", "no")
    row["chosen"][0]["tool_calls"] = None
    assert parsed(row) == parsed(conversation("hi", "yes", "no"))


def test_plain_with_prompt() -> None:
    pair = parsed(plain("2+2=", " 4", " 5"))
    assert (pair.prompt, pair.chosen, pair.rejected, pair.answer) == ("2+2=", " 4", " 5", None)


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("Q: sky? A: blue", "Q: sky? A: black", "Q: sky? A:"),
        ("Q: sky? A: blue", "Q: sky? A: green", "Q: sky? A:"),
        ("say: yes", "say: yes of course", "say:"),
        ("say: yes of course", "say: yes", "say:"),
        ("say: yes ", "say: yes of course", "say:"),
        ("ab", "ab c", "a"),
        ("ab", "ac", "a"),
    ],
)
def test_plain_with_the_prompt_in_both_sides(chosen: str, rejected: str, prompt: str) -> None:
    pair = parsed({"chosen": chosen, "rejected": rejected})
    assert pair.prompt == prompt
    assert prompt + str(pair.chosen) == chosen
    assert prompt + str(pair.rejected) == rejected


@given(st.text("ab \n", max_size=12), st.text("ab \n", max_size=6), st.text("ab \n", max_size=6))
def test_an_implicit_prompt_leaves_both_sides_something(start: str, left: str, right: str) -> None:
    try:
        pair = parsed({"chosen": start + left, "rejected": start + right})
    except DataError:
        return
    assert isinstance(pair.prompt, str)
    assert (pair.prompt + str(pair.chosen), pair.prompt + str(pair.rejected)) == (start + left, start + right)
    assert pair.prompt.strip()
    if start + left != start + right:
        assert text_of(pair.chosen).strip()
        assert text_of(pair.rejected).strip()


GOOD = conversation("hi", "yes", "no")


# Identity and cleaning


def test_pair_ids_do_not_depend_on_the_run() -> None:
    assert parsed(conversation("hi", "yes", "no")).pair_id == "8fc172aca55cb584"


def test_pair_ids_do_not_depend_on_order_or_other_fields() -> None:
    rows = [conversation(f"prompt {number}", "yes", "no") for number in range(20)]
    ids = [pair.pair_id for pair in cleaned(*rows)[0]]
    shuffled = random.Random(0).sample(range(20), 20)
    again = [pair.pair_id for pair in cleaned(*(rows[place] | {"extra": place} for place in shuffled))[0]]
    assert again == [ids[place] for place in shuffled]
    assert len(set(ids)) == 20


def test_pair_ids_tell_pairs_apart() -> None:
    rows = [
        conversation("a", "b", "c"),
        conversation("a", "c", "b"),
        conversation("a", "b", "d"),
        conversation("A", "b", "c"),
        plain("a", "b", "c"),
        plain("a b", "c", "d"),
        plain("a", "b c", "d"),
        conversation("a", "b", "c") | {"prompt": [system("s"), user("a")]},
    ]
    assert len({parsed(row).pair_id for row in rows}) == len(rows)


def test_what_teaches_nothing_is_dropped_and_counted() -> None:
    pairs, counts = cleaned(
        conversation("p", "yes", "no"),
        conversation("p", "same", "same"),
        conversation("p", "same", " same\n"),
        conversation("p", "yes", "no", answer="yes"),
        conversation("p", "yes", "maybe"),
        conversation("q", "a", "b"),
        conversation("q", "b", "a"),
        conversation("q", "b", "a"),
        conversation("r", "b", "a"),
    )
    assert counts == {"read": 9, "identical_sides": 2, "duplicate": 2, "contradictory": 2}
    assert [(text_of(pair.prompt), text_of(pair.rejected)) for pair in pairs] == [
        ("user: p", "assistant: no"),
        ("user: p", "assistant: maybe"),
        ("user: r", "assistant: a"),
    ]


def test_identical_sides_without_a_prompt() -> None:
    messages = [user("p"), assistant("same")]
    _, counts = cleaned(
        {"chosen": messages, "rejected": messages},
        {"chosen": "p same", "rejected": "p same"},
        {"chosen": "same", "rejected": "same"},
    )
    assert counts["identical_sides"] == 3


def test_prompts_are_one_whatever_their_case_and_blanks() -> None:
    keys = {parsed(plain(prompt, "a", "b")).prompt_key for prompt in ("Say  Hi", "say hi\n", " SAY\thi")}
    assert keys == {"say hi"}


# Reading

ROWS = [plain("one", "a", "b"), plain("zwei ä", "a", "b"), plain("three", "a", "b")]
LINES = [json.dumps(row, ensure_ascii=False) for row in ROWS]


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(LINES).encode(),
        ("\ufeff" + "\n".join(LINES)).encode(),
        "\r\n".join([*LINES, ""]).encode(),
        ("\n" + "\n \n".join(LINES) + "\n\n\n").encode(),
    ],
    ids=["unix", "bom", "windows", "blank-lines"],
)
@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "json"])
def test_json_lines(tmp_path: Path, content: bytes, suffix: str) -> None:
    source = tmp_path / f"file.{suffix}"
    source.write_bytes(content)
    rows = read(source)
    assert [row.data for row in rows] == ROWS
    lines = [number for number, line in enumerate(content.splitlines(), start=1) if line.strip()]
    assert [row.where for row in rows] == [f"{source}:{number}" for number in lines]


def test_parquet(tmp_path: Path) -> None:
    rows = [conversation(f"p{number}", "yes", "no") for number in range(300)]
    rows[1]["answer"] = "yes"
    rows[2] |= {"chosen": [assistant("yes"), user("more"), assistant("yes")]}
    pq.write_table(pa.Table.from_pylist([{"answer": None, **row} for row in rows]), tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet")
    assert [row.data for row in found] == rows
    assert found[299].where == f"{tmp_path}/a.parquet:300"
    pairs, counts = clean(found)
    assert counts["read"] == len(pairs) == 300


def test_a_missing_prompt_in_parquet_is_an_implicit_one(tmp_path: Path) -> None:
    rows = [{"prompt": None, "chosen": "p yes", "rejected": "p no"}, plain("p", "yes", "no")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert [pair.prompt for pair in clean(read(tmp_path / "a.parquet"))[0]] == ["p", "p"]


def test_saved_datasets(tmp_path: Path) -> None:
    rows = [conversation(f"p{number}", "yes", "no", answer="yes") for number in range(3)]
    data = datasets.Dataset.from_list(rows)
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"a": data, "b": data.select([2])}).save_to_disk(tmp_path / "two")
    assert read(tmp_path / "one") == [
        Row(f"{tmp_path}/one:{number}", row) for number, row in enumerate(rows, start=1)
    ]
    assert [row.where for row in read(tmp_path / "two")] == [
        *(f"{tmp_path}/two/a:{number}" for number in (1, 2, 3)),
        f"{tmp_path}/two/b:1",
    ]
    assert clean(read(tmp_path / "two"))[1]["duplicate"] == 1


def test_a_folder_of_files_is_read_in_order(tmp_path: Path) -> None:
    jsonl(tmp_path / "b.jsonl", [ROWS[0]])
    jsonl(tmp_path / "a" / "x.json", [ROWS[1]])
    pq.write_table(pa.Table.from_pylist([ROWS[2]]), tmp_path / "c.parquet")
    (tmp_path / "README.md").write_text("no rows")
    jsonl(tmp_path / ".ipynb_checkpoints" / "b.jsonl", [ROWS[0]])
    jsonl(tmp_path / "._b.jsonl", [ROWS[0]])
    (tmp_path / "folder.json").mkdir()
    expected = [
        Row(f"{tmp_path}/a/x.json:1", ROWS[1]),
        Row(f"{tmp_path}/b.jsonl:1", ROWS[0]),
        Row(f"{tmp_path}/c.parquet:1", ROWS[2]),
    ]
    assert read(tmp_path) == expected
    assert read(f"{tmp_path}/") == expected


@pytest.mark.parametrize("source", ["file", "a/b/c", "./a", "../a", "/a", "~/a", "a/b.jsonl", "a/b.parquet"])
def test_a_path_that_is_not_there_is_never_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"task task: {re.escape(source)} does not exist"):
        read(source)
    with pytest.raises(DataError, match=f"task task: {re.escape(source)} does not exist"):
        parse_task("task", source).fingerprint()


def test_a_hub_id_that_cannot_be_reached(tmp_path: Path) -> None:
    """In a process of its own: datasets reads HF_HUB_OFFLINE once."""
    code = (
        "from automixalign.config.data import TaskSpec\n"
        "from automixalign.data.read import read_rows\n"
        "list(read_rows(TaskSpec(name='t', source='owner/name', hub_split='dev'), seed=0))\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "", "HOME": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "DataError: task t: owner/name is neither a local path nor a readable hub data set" in ended.stderr
    assert "'dev'" in ended.stderr


def test_synthetic_rows() -> None:
    task = TaskSpec(name="task", source="synthetic:arithmetic", limit=5)
    rows = list(read_rows(task, seed=1))
    assert [row.where for row in rows] == [f"synthetic:arithmetic:{number}" for number in range(1, 6)]
    assert rows == list(read_rows(task, seed=1))
    assert rows != list(read_rows(task, seed=2))
    assert len(clean(rows)[0]) == 5


def test_fingerprints_follow_the_content(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "folder" / "a.jsonl", ROWS)
    sources = [parse_task("task", str(path)) for path in (file, file.parent)]
    before = [source.fingerprint() for source in sources]
    jsonl(tmp_path / "folder" / ".hidden.jsonl", ROWS)
    assert [source.fingerprint() for source in sources] == before
    jsonl(file, ROWS[:2])
    assert all(source.fingerprint() != old for source, old in zip(sources, before, strict=True))


# Splitting


def pair_of(prompt: str, number: int = 0) -> Pair:
    return parsed(plain(prompt, f"good {number}", f"bad {number}"))


def ids(pairs: list[Pair]) -> set[str]:
    return {pair.pair_id for pair in pairs}


@st.composite
def _tasks(draw: st.DrawFn) -> dict[str, list[Pair]]:
    """Tasks with many pairs a prompt, some spelt otherwise, that share some of their prompts."""
    tasks = {}
    for name in ("a", "b", "c")[: draw(st.integers(1, 3))]:
        drawn = draw(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 3)), min_size=1, max_size=40))
        pairs = [
            pair_of(f"prompt {prompt}" if number % 2 else f"PROMPT  {prompt}", number)
            for prompt, number in sorted(set(drawn))
        ]
        tasks[name] = draw(st.permutations(pairs))
    return tasks


@settings(max_examples=150, deadline=None)
@given(
    tasks=_tasks(),
    validation=st.sampled_from([0.0, 0.1, 0.3]),
    test=st.sampled_from([0.1, 0.25, 0.5]),
    cap=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 5),
)
def test_no_prompt_stands_on_two_sides(
    tasks: dict[str, list[Pair]], validation: float, test: float, cap: int | None, seed: int
) -> None:
    spec = SplitSpec(validation=validation, test=test, max_train=cap, max_test=cap)
    try:
        splits = split_tasks(tasks, spec, seed)
    except DataError as error:
        assert re.match(r"task [abc]: ", str(error))
        return
    side: dict[str, str] = {}
    for task, parts in splits.items():
        assert list(parts) == list(SPLITS)
        together = [pair.pair_id for part in parts.values() for pair in part]
        assert len(set(together)) == len(together)
        assert set(together) <= ids(tasks[task])
        if cap is None:
            assert set(together) == ids(tasks[task])
        else:
            assert len(parts["train"]) <= cap
            assert len(parts["test"]) <= cap
        for name, part in parts.items():
            for pair in part:
                assert side.setdefault(pair.prompt_key, name) == name
    if not validation:
        assert all(not parts["validation"] for parts in splits.values())


@settings(max_examples=50, deadline=None)
@given(tasks=_tasks(), seed=st.integers(0, 5), order=st.randoms(use_true_random=False))
def test_the_split_does_not_depend_on_the_order_of_rows(
    tasks: dict[str, list[Pair]], seed: int, order: random.Random
) -> None:
    def outcome(tasks: dict[str, list[Pair]]) -> Any:
        try:
            splits = split_tasks(tasks, SplitSpec(validation=0.2, test=0.2), seed)
        except DataError as error:
            return str(error)
        return {task: {name: ids(part) for name, part in parts.items()} for task, parts in splits.items()}

    shuffled = {task: order.sample(pairs, len(pairs)) for task, pairs in tasks.items()}
    assert outcome(shuffled) == outcome(tasks)


@pytest.mark.parametrize(
    ("count", "validation", "test", "sizes"),
    [
        (100, 0.1, 0.1, (80, 10, 10)),
        (100, 0.07, 0.29, (64, 7, 29)),
        (10, 0.0, 0.2, (8, 0, 2)),
        (15, 0.1, 0.1, (11, 2, 2)),
        (3, 0.1, 0.1, (1, 1, 1)),
        (1000, 0.05, 0.15, (800, 50, 150)),
    ],
)
def test_sizes_are_as_asked(count: int, validation: float, test: float, sizes: tuple[int, ...]) -> None:
    pairs = [pair_of(str(number)) for number in range(count)]
    parts = split_tasks({"task": pairs}, SplitSpec(validation=validation, test=test), 0)["task"]
    assert tuple(len(parts[name]) for name in SPLITS) == sizes


def test_caps_take_a_part_and_move_nothing() -> None:
    pairs = {"task": [pair_of(str(number)) for number in range(100)]}
    whole = split_tasks(pairs, SplitSpec(validation=0.2, test=0.2), 0)["task"]
    spec = SplitSpec(validation=0.2, test=0.2, max_train=5, max_validation=3, max_test=2)
    capped = split_tasks(pairs, spec, 0)["task"]
    assert [len(capped[name]) for name in SPLITS] == [5, 3, 2]
    assert all(ids(capped[name]) < ids(whole[name]) for name in SPLITS)


def test_the_split_changes_with_the_seed_alone() -> None:
    pairs = {"task": [pair_of(str(number)) for number in range(100)]}
    spec = SplitSpec()
    assert split_tasks(pairs, spec, 0) == split_tasks(pairs, spec, 0)
    tests = [ids(split_tasks(pairs, spec, seed)["task"]["test"]) for seed in range(4)]
    assert all(left != right for left, right in pairwise(tests))


def test_the_test_split_is_no_fixed_part_of_the_rows() -> None:
    pairs = [pair_of(str(number)) for number in range(1000)]
    chosen = ids(split_tasks({"task": pairs}, SplitSpec(test=0.2), 0)["task"]["test"])
    places = [place for place, pair in enumerate(pairs) if pair.pair_id in chosen]
    # 200 of 1000 places: their mean lies within four standard errors of the middle.
    assert abs(sum(places) / 200 - 499.5) < 4 * 1000 / math.sqrt(12 * 200)


# Tokens


@pytest.fixture(scope="module")
def merging() -> PreTrainedTokenizerFast:
    """A BPE without word boundaries and with a bos token, so tokens merge across prompt and side."""
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    backend = Tokenizer(models.BPE(unk_token=special["unk_token"]))
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    backend.train_from_iterator(["the answer is: blue. the answer is: black. user: hi no: yes"] * 9, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    # The generation prompt ends in a blank that no answer begins with: it is no prefix of prompt and answer.
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return tokenizer


CONVERSATIONS = [
    conversation("add 1 2", "3", "[1,2]"),
    {
        "prompt": [system("be kind"), user("one"), assistant("two"), user("three")],
        "chosen": [assistant("the answer is: blue.")],
        "rejected": [assistant("the answer is: black.")],
    },
    {
        "prompt": [user("q")],
        "chosen": [assistant("a"), user("more"), assistant("end")],
        "rejected": [assistant("b")],
    },
]
PLAIN = [
    plain("the answer is: ", "blue.", "black."),
    plain("the answ", "er is: blue.", "er is: no"),
    plain("the answer is: bl", "ue.", "ack."),
    plain("hi", " yes</s>", " no<eos>"),
    plain("a", "b", "c"),
]
IMPLICIT = [
    {"chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]}
    for row in CONVERSATIONS
]


@pytest.fixture(scope="module")
def by_trl(
    base_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[list[Data], Any, int | None], tuple[list[Data], Any]]:
    """TRL's own preparation: the rows that a real DPOTrainer made of a data set, and its collator."""

    def prepare(rows: list[Data], tokenizer: Any, max_length: int | None) -> tuple[list[Data], Any]:
        trainer = DPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(base_model),
            args=DPOConfig(
                output_dir=str(tmp_path_factory.mktemp("trl")),
                max_length=max_length,
                use_cpu=True,
                bf16=False,
                report_to="none",
                dataset_num_proc=None,
            ),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        return list(trainer.train_dataset), trainer.data_collator

    return prepare


def ours(rows: list[Data], tokenizer: Any, max_length: int) -> list[Tokens | None]:
    chunks = tokenize_all(tokenizer, map(parsed, rows), max_length)
    return [tokens for chunk in chunks for _, tokens in chunk]


@pytest.mark.parametrize("which", ["tokenizer", "merging"])
@pytest.mark.parametrize("rows", [CONVERSATIONS, PLAIN, IMPLICIT], ids=["conversations", "plain", "implicit"])
def test_tokens_are_those_of_trl(
    request: pytest.FixtureRequest, by_trl: Any, which: str, rows: list[Data]
) -> None:
    tokenizer = request.getfixturevalue(which)
    expected, _ = by_trl(rows, tokenizer, None)
    assert len(expected) == len(rows)
    for found, theirs in zip(ours(rows, tokenizer, 1000), expected, strict=True):
        assert found is not None
        assert not found.truncated
        assert found[:3] == (theirs["prompt_ids"], theirs["chosen_ids"], theirs["rejected_ids"])
        assert found.prompt
        assert found.chosen != found.rejected


def test_tokens_do_merge_across_the_boundary(merging: PreTrainedTokenizerFast) -> None:
    """Or the comparison above would not show what it is there for."""
    cut = [
        found.prompt != merging(row["prompt"])["input_ids"]
        for row, found in zip(PLAIN, ours(PLAIN, merging, 1000), strict=True)
        if found is not None
    ]
    assert any(cut)
    assert not all(cut)


@pytest.mark.parametrize("max_length", [9, 12, 16, 20, 30, 60])
@pytest.mark.parametrize("rows", [CONVERSATIONS, PLAIN], ids=["conversations", "plain"])
def test_sides_are_cut_where_trl_cuts_them(
    tokenizer: PreTrainedTokenizerFast, by_trl: Any, rows: list[Data], max_length: int
) -> None:
    rows = (
        [*rows, conversation("hi", "x" * 80, "y")] if rows is CONVERSATIONS else [*rows, plain("h", "xy", "z")]
    )
    expected, collate = by_trl(rows, tokenizer, max_length)
    found = [tokens for tokens in ours(rows, tokenizer, max_length) if tokens is not None]
    assert len(found) == len(expected)
    for tokens, theirs in zip(found, expected, strict=True):
        batch = collate([theirs])
        for side, ids_of_side in enumerate((tokens.chosen, tokens.rejected)):
            real = batch["attention_mask"][side].bool()
            assert batch["input_ids"][side][real].tolist() == tokens.prompt + ids_of_side
            assert batch["completion_mask"][side][real].sum() == len(ids_of_side)
        longest = max(len(theirs["chosen_ids"]), len(theirs["rejected_ids"]))
        assert tokens.truncated == (len(theirs["prompt_ids"]) + longest > max_length)


def test_a_prompt_that_leaves_no_room(tokenizer: PreTrainedTokenizerFast) -> None:
    pair = parsed(plain("12345", "a", "b"))
    assert tokenize(tokenizer, pair, 5) is None
    found = tokenize(tokenizer, pair, 6)
    assert found is not None
    assert tokenizer.decode(found.chosen) == "a"
    assert found.truncated  # of the end-of-sequence token


# All of it


def settings_for(source: Path, **more: Any) -> DataSettings:
    task = {"name": "task", "source": str(source), **more.pop("task", {})}
    values = {"seed": 0, "max_length": 200, "split": {}, "fingerprints": [""], **more}
    return DataSettings.model_validate({"tasks": [task], **values})


def tables(folder: Path, task: str = "task") -> dict[str, list[Data]]:
    return {split: read_split(folder, task, split).to_pylist() for split in SPLITS}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """120 rows of 100 usable pairs, conversational."""
    rows = [conversation(f"prompt {number}", f"yes {number}", "no", answer="yes") for number in range(100)]
    rows += [conversation(f"same {number}", "x", " x ") for number in range(3)]
    rows += rows[:5]
    rows += [conversation("torn", "a", "b"), conversation("torn", "b", "a")]
    rows += [conversation("long " * 50, "a", str(number)) for number in range(4)]
    rows += [conversation("cut", "x" * 300 + "1", "x" * 300 + "2")]
    rows += [conversation(f"prompt {number}", "y" * 300, "no", answer="yes") for number in range(5)]
    return jsonl(tmp_path / "source.jsonl", rows)


def test_prepare_data(
    tmp_path: Path, base_model: Path, source: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    output = tmp_path / "out"
    card = tiny.prepare(settings_for(source), base_model, output)
    assert read_card(output) == card
    assert tasks_of(output) == ["task"]
    (task,) = card["tasks"]
    assert task["rows"] == {
        "read": 120,
        "identical_sides": 3,
        "duplicate": 5,
        "contradictory": 2,
        "prompt_too_long": 4,
        "identical_when_cut": 1,
        "cut": 5,
        "over_cap": 0,
    }
    found = tables(output)
    assert {split: len(rows) for split, rows in found.items()} == task["pairs"]
    assert {split: len({row["prompt"][0]["content"] for row in rows}) for split, rows in found.items()} == task[
        "prompts"
    ]
    rows = [row for part in found.values() for row in part]
    assert len({row["pair_id"] for row in rows}) == 105
    for row in rows:
        assert (row["task"], row["answer"], row["swapped"]) == ("task", "yes", False)
        assert tokenizer.decode(row["prompt_ids"]) == f"<bos><|user|>{row['prompt'][0]['content']}<|assistant|>"
        whole = row["chosen"][0]["content"] + "<eos>"
        assert tokenizer.decode(row["chosen_ids"]) == whole[: 200 - len(row["prompt_ids"])]
        assert tokenizer.decode(row["rejected_ids"]) == "no<eos>"
    for name in ("prompt", "chosen", "rejected"):
        lengths = [len(row[f"{name}_ids"]) for row in rows]
        assert task["tokens"][name] == {"mean": round(sum(lengths) / 105, 1), "max": max(lengths)}
    assert task["digest"] == task_digest(output, "task")
    assert sorted(path.name for path in output.rglob("*")) == [
        "card.json",
        "task",
        "test.parquet",
        "train.parquet",
        "validation.parquet",
    ]


def test_a_card_adds_up(tmp_path: Path, base_model: Path, source: Path) -> None:
    more = {"split": {"max_train": 20, "max_test": 2}, "task": {"limit": 90}}
    (task,) = tiny.prepare(settings_for(source, **more), base_model, tmp_path / "out")["tasks"]
    rows, kept = task["rows"], sum(task["pairs"].values())
    dropped = (
        "identical_sides",
        "duplicate",
        "contradictory",
        "over_limit",
        "prompt_too_long",
        "identical_when_cut",
        "over_cap",
    )
    assert rows["over_limit"] == 20
    assert task["pairs"]["train"] == 20
    assert task["pairs"]["test"] == 2
    assert rows["read"] == kept + sum(rows.get(reason, 0) for reason in dropped)


def test_preparing_again_gives_the_same_bytes(tmp_path: Path, base_model: Path, source: Path) -> None:
    wanted = settings_for(source, task={"limit": 80, "label_noise": 0.3})
    first = tiny.prepare(wanted, base_model, tmp_path / "one")
    second = tiny.prepare(wanted, base_model, tmp_path / "two")
    assert first == second
    assert files.digest(tmp_path / "one") == files.digest(tmp_path / "two")
    for split in SPLITS:
        assert (
            split_path(tmp_path / "one", "task", split).read_bytes()
            == split_path(tmp_path / "two", "task", split).read_bytes()
        )


def test_limit(tmp_path: Path, base_model: Path, source: Path) -> None:
    def drawn(name: str, seed: int) -> set[str]:
        card = tiny.prepare(settings_for(source, seed=seed, task={"limit": 40}), base_model, tmp_path / name)
        task = card["tasks"][0]
        too_long = task["rows"].get("prompt_too_long", 0) + task["rows"].get("identical_when_cut", 0)
        assert sum(task["pairs"].values()) == 40 - too_long
        return {row["pair_id"] for rows in tables(tmp_path / name).values() for row in rows}

    first = drawn("a", 0)
    assert drawn("b", 0) == first
    assert drawn("c", 1) != first


def test_label_noise(tmp_path: Path, base_model: Path, source: Path) -> None:
    def prepared(name: str, **more: Any) -> tuple[Data, dict[str, list[Data]]]:
        card = tiny.prepare(settings_for(source, **more), base_model, tmp_path / name)
        return card["tasks"][0], tables(tmp_path / name)

    _, clean_tables = prepared("clean")
    card, noisy = prepared("noisy", task={"label_noise": 0.25})
    _, again = prepared("again", task={"label_noise": 0.25})
    assert again == noisy
    assert card["swapped"] == sum(row["swapped"] for row in noisy["train"]) == round(0.25 * len(noisy["train"]))
    assert noisy["validation"] == clean_tables["validation"]
    assert noisy["test"] == clean_tables["test"]
    for right, row in zip(clean_tables["train"], noisy["train"], strict=True):
        sides = ("chosen", "rejected") if not row["swapped"] else ("rejected", "chosen")
        for name, side in zip(("chosen", "rejected"), sides, strict=True):
            assert row[name] == right[side]
            assert row[f"{name}_ids"] == right[f"{side}_ids"]
        assert {key: row[key] for key in ("pair_id", "prompt", "answer")} == {
            key: right[key] for key in ("pair_id", "prompt", "answer")
        }


def test_tasks_that_share_prompts_and_pairs(tmp_path: Path, base_model: Path) -> None:
    one = jsonl(tmp_path / "one.jsonl", [plain(f"p {n}", "a", "b") for n in range(60)])
    two = jsonl(tmp_path / "two.jsonl", [plain(f"P  {n}", "a", "b" if n % 2 else "c") for n in range(60)])
    three = jsonl(tmp_path / "three.jsonl", [conversation(f"other {n}", "a", "b") for n in range(10)])
    tasks = [{"name": path.stem, "source": str(path)} for path in (one, two, three)]
    wanted = DataSettings.model_validate(
        {"seed": 0, "tasks": tasks, "split": {}, "max_length": 100, "fingerprints": ["", "", ""]}
    )
    card = tiny.prepare(wanted, base_model, tmp_path / "out")
    assert [task["name"] for task in card["tasks"]] == tasks_of(tmp_path / "out") == ["one", "two", "three"]
    side: dict[str, str] = {}
    for task in ("one", "two"):
        for split, rows in tables(tmp_path / "out", task).items():
            for row in rows:
                assert side.setdefault(" ".join(row["prompt"].lower().split()), split) == split
    assert len(side) == 60
    assert len({task["digest"] for task in card["tasks"]}) == 3


def test_without_validation(tmp_path: Path, base_model: Path, source: Path) -> None:
    tiny.prepare(settings_for(source, split={"validation": 0}), base_model, tmp_path / "out")
    found = tables(tmp_path / "out")
    assert found["validation"] == []
    assert found["train"]
    assert found["test"]


def with_template(base_model: Path, tmp_path: Path, template: str | None) -> Path:
    """The base model's folder with another chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_model)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path / "model")
    shutil.copy(base_model / "config.json", tmp_path / "model")
    return tmp_path / "model"


def test_messages_need_a_chat_template(tmp_path: Path, base_model: Path, source: Path) -> None:
    model = with_template(base_model, tmp_path, None)
    with pytest.raises(ModelError, match=r"task task: the data is conversational, .* no chat template"):
        tiny.prepare(settings_for(source), model, tmp_path / "out")
    text = jsonl(tmp_path / "plain.jsonl", [plain(str(number), "a", "b") for number in range(20)])
    card = tiny.prepare(settings_for(text), model, tmp_path / "out")
    assert sum(card["tasks"][0]["pairs"].values()) == 20


def test_synthetic_tasks_are_prepared(tmp_path: Path, base_model: Path) -> None:
    wanted = settings_for(Path("synthetic:arithmetic"), task={"source": "synthetic:arithmetic", "limit": 30})
    (task,) = tiny.prepare(wanted, base_model, tmp_path / "out")["tasks"]
    assert task["pairs"] == {"train": 24, "validation": 3, "test": 3}
    for rows in tables(tmp_path / "out").values():
        assert all(row["answer"] == row["chosen"][0]["content"] for row in rows)


def test_a_hub_data_set_is_read_by_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a hub id goes through, on local files: one split, absent fields left out."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    jsonl(tmp_path / "hub" / "train.jsonl", [conversation("p", "yes", "no", answer="yes"), GOOD])
    jsonl(tmp_path / "hub" / "test.jsonl", [conversation("q", "yes", "no")])
    for split, prompts in (("train", 2), ("test", 1)):
        task = TaskSpec(name="task", source=str(tmp_path / "hub"), hub_split=split)
        rows = list(_read_hub(task))
        assert len(rows) == prompts
        assert rows[0].where == f"{tmp_path / 'hub'}[{split}]:1"
        assert clean(rows)[1]["read"] == prompts
        assert all(value is not None for row in rows for value in row.data.values())
