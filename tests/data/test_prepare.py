"""Data is prepared from its sources to Parquet and a card, with the same result at any size."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast

from automixalign.config.data import DataSettings
from automixalign.data import external_sort, store, tokens
from automixalign.data.clean import Fate
from automixalign.data.prepare import prepare_data
from automixalign.data.store import SPLITS, read_card, read_split, split_path, task_digest, tasks_of
from automixalign.models.load import load_tokenizer
from automixalign.quickstart.tiny_model import build_tokenizer
from automixalign.steps.events import EVENTS_FILE, LOGS_VARIABLE, parse_events
from automixalign.steps.step import run_step
from automixalign.storage import files
from automixalign.system.errors import DataError, ModelError
from benchmarks import tiny
from tests.data import plain_data
from tests.data.rows import Data, conversation, plain, write_rows


def settings_for(source: Path | str, **more: Any) -> DataSettings:
    task = {"name": "task", "source": str(source), **more.pop("task", {})}
    values = {"seed": 0, "max_length": 200, "split": {}, "fingerprints": [""], **more}
    return DataSettings.model_validate({"tasks": [task], **values})


def tables(folder: Path, task: str = "task") -> dict[str, list[Data]]:
    return {split: read_split(folder, task, split).to_pylist() for split in SPLITS}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """120 rows of 105 usable pairs, conversational."""
    rows = [conversation(f"prompt {number}", f"yes {number}", "no", answer="yes") for number in range(100)]
    rows += [conversation(f"same {number}", "x", " x ") for number in range(3)]
    rows += rows[:5]
    rows += [conversation("both ways", "a", "b"), conversation("both ways", "b", "a")]
    rows += [conversation("long " * 50, "a", str(number)) for number in range(4)]
    rows += [conversation("cut", "x" * 300 + "1", "x" * 300 + "2")]
    rows += [conversation(f"prompt {number}", "y" * 300, "no", answer="yes") for number in range(5)]
    return write_rows(tmp_path / "source.jsonl", rows)


def test_prepare(tmp_path: Path, base_model: Path, source: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    output = tmp_path / "out"
    card = tiny.prepare(settings_for(source, long_answers="cut"), base_model, output)
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
    }
    splits = tables(output)
    assert {split: len(rows) for split, rows in splits.items()} == task["pairs"]
    prompts = {split: {row["prompt"][0]["content"] for row in rows} for split, rows in splits.items()}
    assert {split: len(texts) for split, texts in prompts.items()} == task["prompts"]
    rows = [row for part in splits.values() for row in part]
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
    parquet = {f"{split}.parquet" for split in SPLITS}
    assert {path.name for path in output.rglob("*")} == {"card.json", "task", *parquet}


def test_a_limit_draws_pairs_by_the_seed(tmp_path: Path, base_model: Path, source: Path) -> None:
    def drawn(name: str, seed: int) -> set[str]:
        tiny.prepare(settings_for(source, seed=seed, task={"limit": 40}), base_model, tmp_path / name)
        return {row["pair_id"] for rows in tables(tmp_path / name).values() for row in rows}

    assert drawn("a", 0) == drawn("b", 0) != drawn("c", 1)


def test_without_validation(tmp_path: Path, base_model: Path, source: Path) -> None:
    tiny.prepare(settings_for(source, split={"validation": 0}), base_model, tmp_path / "out")
    assert [split for split, rows in tables(tmp_path / "out").items() if rows] == ["train", "test"]


def test_messages_need_a_chat_template(tmp_path: Path, source: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match=r"task task: the data is conversational, .* no chat template"):
        prepare_data(settings_for(source), tokenizer, {}, tmp_path / "out")
    text = write_rows(tmp_path / "plain.jsonl", [plain(str(number), "a", "b") for number in range(20)])
    card = prepare_data(settings_for(text), tokenizer, {}, tmp_path / "out")
    assert sum(card["tasks"][0]["pairs"].values()) == 20


def test_a_token_without_a_row_in_the_embedding(tmp_path: Path) -> None:
    """Such tokens are common, as in gemma-3-1b-it; the data may not use them."""
    tokenizer = build_tokenizer()
    rows = len(tokenizer)
    tokenizer.add_tokens(["<image>"])
    source = write_rows(tmp_path / "rows.jsonl", [plain(f"say {n}", "yes", "no") for n in range(10)])
    prepare_data(settings_for(source), tokenizer, {}, tmp_path / "out", vocabulary=rows)
    write_rows(source, [plain("say 0", "yes", "no"), plain("say 1", "an <image>", "no")])
    message = rf"task task: .*pair \w+ has the token '<image>' with the id {rows}, .* only {rows} rows"
    with pytest.raises(DataError, match=message):
        prepare_data(settings_for(source), tokenizer, {}, tmp_path / "new", vocabulary=rows)
    assert not (tmp_path / "new").exists()


def test_synthetic_tasks_are_prepared(tmp_path: Path, base_model: Path) -> None:
    settings = settings_for("synthetic:arithmetic", task={"limit": 30})
    (task,) = tiny.prepare(settings, base_model, tmp_path / "out")["tasks"]
    assert task["pairs"] == {"train": 24, "validation": 3, "test": 3}
    for rows in tables(tmp_path / "out").values():
        assert all(row["answer"] == row["chosen"][0]["content"] for row in rows)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make chunks, buffers, files and row groups so small that there are many of each."""
    monkeypatch.setattr(tokens, "_CHUNK_PAIRS", 16)
    monkeypatch.setattr(external_sort, "_BUFFER_BYTES", 10_000)
    monkeypatch.setattr(store, "_GROUP_ROWS", 10)


def _experiment(folder: Path, conversational: bool) -> DataSettings:
    """Two tasks that share prompts, with all that may happen to a pair, and one of plain text."""
    rows = []
    for number in range(300):
        prompt, sides = f"prompt {number % 170}" + " long" * (number % 40), [f"yes {number % 290}", "no"]
        if number % 50 == 7:
            sides.reverse()
        rows.append(conversation(prompt, *sides, answer=sides[0]) if conversational else plain(prompt, *sides))
    rows += [*rows[:5], rows[9] | {"chosen": rows[9]["rejected"], "rejected": rows[9]["chosen"]}]
    write_rows(folder / "one.jsonl", rows)
    write_rows(folder / "two.jsonl", rows[::-2])
    write_rows(folder / "three.jsonl", [plain(f"P  {n}", "a", "b" if n % 2 else "c") for n in range(30)])
    tasks: list[Data] = [
        {"name": name, "source": str(folder / f"{name}.jsonl")} for name in ("one", "two", "three")
    ]
    tasks[0] |= {"limit": 280, "label_noise": 0.3}
    return DataSettings.model_validate(
        {
            "seed": 3,
            "tasks": tasks,
            "split": {"validation": 0.2, "test": 0.15, "max_train": 150, "max_test": 30},
            "max_length": 200 if conversational else 190,
            "fingerprints": ["", "", ""],
        }
    )


DROPPED = ["identical_sides", *(fate.name.lower() for fate in Fate if fate)]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("conversational", [True, False])
@pytest.mark.parametrize("which", ["base_model", "smollm2_folder"])
def test_small_parts_give_what_memory_gives(
    tmp_path: Path, request: pytest.FixtureRequest, which: str, conversational: bool
) -> None:
    model = request.getfixturevalue(which)
    settings = _experiment(tmp_path, conversational)
    card = tiny.prepare(settings, model, tmp_path / "out")
    expected = plain_data.prepare(settings, load_tokenizer(model))
    assert tasks_of(tmp_path / "out") == list(expected) == ["one", "two", "three"]
    for task, parts in expected.items():
        assert tables(tmp_path / "out", task) == parts
    one = card["tasks"][0]
    assert one["swapped"] == round(0.3 * len(expected["one"]["train"]))
    always = {"duplicate", "contradictory", "over_limit", "over_cap"}
    assert always <= {reason for reason in DROPPED if one["rows"].get(reason)}
    assert bool(one["rows"].get("prompt_too_long")) == (which == "base_model")
    for task in card["tasks"]:
        dropped = sum(task["rows"].get(reason, 0) for reason in DROPPED)
        assert task["rows"]["read"] == sum(task["pairs"].values()) + dropped
    assert len({task["digest"] for task in card["tasks"]}) == 3
    groups = pq.ParquetFile(split_path(tmp_path / "out", "one", "train")).metadata.num_row_groups
    assert groups == -(-len(expected["one"]["train"]) // 10)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"card.json", "one", "two", "three"}


def test_a_small_split_is_always_the_same_table(tmp_path: Path, base_model: Path) -> None:
    """Its bytes, and so the digest by which caches name it, are those of a table that is written at once."""
    settings = _experiment(tmp_path, True)
    cards = [tiny.prepare(settings, base_model, tmp_path / name) for name in ("first", "second")]
    assert cards[0] == cards[1]
    assert files.digest(tmp_path / "first") == files.digest(tmp_path / "second")
    for task, parts in plain_data.prepare(settings, load_tokenizer(base_model)).items():
        for name, rows in parts.items():
            table = pa.Table.from_pylist(rows, schema=store.split_schema(task != "three"))
            pq.write_table(table, tmp_path / "whole", compression="zstd", write_page_checksum=True)
            assert (tmp_path / "whole").read_bytes() == split_path(tmp_path / "first", task, name).read_bytes()


def test_long_rows_make_small_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_GROUP_BYTES", 1000)
    schema = pa.schema([("text", pa.string())])
    rows = pa.table({"text": [str(number) * 100 for number in range(40)]}, schema=schema)
    with store.split_writer(tmp_path / "file", schema) as writer:
        for start in range(0, 40, 5):
            writer.add(rows.slice(start, 5))
    assert pq.read_table(tmp_path / "file") == rows
    assert pq.ParquetFile(tmp_path / "file").metadata.num_row_groups == 8


@pytest.mark.parametrize(("changes", "total"), [({}, 0), ({"limit": 30}, 30)], ids=["all pairs", "drawn pairs"])
def test_tokenised_pairs_are_reported(
    changes: dict[str, Any], total: int, base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "a.jsonl"
    line = '{{"prompt": "p{}", "chosen": "a", "rejected": "b"}}\n'
    rows.write_text("".join(line.format(number) for number in range(50)))
    monkeypatch.setenv(LOGS_VARIABLE, str(tmp_path))
    given = {"seed": 0, "tasks": [{"name": "a", "source": str(rows), **changes}], "split": {}}
    settings = DataSettings.model_validate({**given, "max_length": 64, "fingerprints": [""]})
    with run_step("prepare_data"):
        tiny.prepare(settings, base_model, tmp_path / "data")
    events = parse_events((tmp_path / EVENTS_FILE).read_bytes())
    progress = [(event["done"], event["total"]) for event in events if event["event"] == "progress"]
    assert progress[-1] == (total or 50, total)
