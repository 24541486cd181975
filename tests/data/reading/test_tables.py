"""Parquet, Arrow and saved data sets."""

from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from automixalign.storage import files
from tests.data.reading.reading import open_rows, refused
from tests.data.rows import assistant, conversation, plain
from tests.faults.common import change_json


def write_arrow(path: Path, table: pa.Table) -> None:
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


WRITERS = {"parquet": lambda path, table: pq.write_table(table, path), "arrow": write_arrow}


@pytest.fixture(params=WRITERS)
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Write a table in one of the kinds of file."""

    def write_table(table: pa.Table) -> Path:
        path = tmp_path / f"a.{request.param}"
        WRITERS[request.param](path, table)
        return path

    return write_table


def test_rows_of_a_table_are_numbered(write: Any) -> None:
    rows = [conversation(f"p{number}", "yes", "no", answer=None) for number in range(600)]
    rows[1]["answer"] = "yes"
    rows[2]["chosen"] = [assistant("yes"), {"role": "user", "content": "more"}, assistant("yes")]
    path = write(pa.Table.from_pylist(rows))
    opened = open_rows(path)
    assert opened.data == rows
    assert [row.where for row in opened.rows] == [f"{path}:{number}" for number in range(1, 601)]


TABLE = pa.Table.from_pylist([{**plain("p", "a", "b"), "scores": {"chosen": 2, "rejected": 1}, "other": 0}] * 2)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["prompt", "missing"], {"prompt": "p"}),
        (["scores.chosen"], {"scores": {"chosen": 2, "rejected": 1}}),
        (["missing"], {}),
        (None, TABLE.to_pylist()[0]),
    ],
)
def test_only_the_named_columns_are_read(write: Any, columns: list[str] | None, expected: Any) -> None:
    assert open_rows(write(TABLE), columns).data == [expected] * 2


def test_two_columns_of_one_name(write: Any) -> None:
    path = write(pa.table([pa.array(["p"]), pa.array(["q"])], names=["prompt", "prompt"]))
    refused(path, "two columns have one name: prompt, prompt")


def test_values_of_mixed_types_are_decoded(tmp_path: Path) -> None:
    """`datasets` stores them as JSON."""
    mixed = [{"role": "assistant", "content": "a"}, {"role": "tool", "content": {"x": [1, "two"]}}]
    features = datasets.Features({"a": datasets.List(datasets.Json()), "b": {"c": datasets.Json()}})
    data = datasets.Dataset.from_list([{"a": mixed, "b": {"c": 1}}, {"a": None, "b": None}], features=features)
    data.to_parquet(str(tmp_path / "a.parquet"))
    data.save_to_disk(tmp_path / "saved")
    expected = [{"a": mixed, "b": {"c": 1}}, {"a": None, "b": None}]
    for source in ("a.parquet", "saved"):
        (first, second) = open_rows(tmp_path / source).data
        assert first == expected[0]
        assert second["a"] is None


def test_damage_inside_an_arrow_file(tmp_path: Path) -> None:
    """A broken offset must not end the process."""
    write_arrow(tmp_path / "a.arrow", pa.table({"prompt": ["abcdefg"]}))
    content = (tmp_path / "a.arrow").read_bytes()
    text = content.index(b"abcdefg")  # the offsets stand before it
    (tmp_path / "a.arrow").write_bytes(content[: text - 4] + b"\xff\xff\xff\x7f" + content[text:])
    refused(tmp_path / "a.arrow", "a.arrow: not a readable Arrow file")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A saved `Dataset` of two files, and a saved `DatasetDict`."""
    data = datasets.Dataset.from_list([conversation(f"p{n}", "yes", "no") for n in range(3)])
    data.save_to_disk(tmp_path / "one", num_shards=2)
    for name, splits in {"dict": ("train", "test"), "odd": ("first", "second"), "held": ("test",)}.items():
        parts = {split: data.select([number]) for number, split in enumerate(splits)}
        datasets.DatasetDict(parts).save_to_disk(tmp_path / name)
    return tmp_path


def test_a_saved_dataset(saved: Path) -> None:
    opened = open_rows(saved / "one")
    assert opened.data == [conversation(f"p{n}", "yes", "no") for n in range(3)]
    assert [row.where for row in opened.rows] == [f"{saved}/one:{number}" for number in (1, 2, 3)]


@pytest.mark.parametrize(("keys", "prompt", "split"), [({}, "p0", "train"), ({"split": "test"}, "p1", "test")])
def test_one_split_of_a_saved_dataset_dict(saved: Path, keys: Any, prompt: str, split: str) -> None:
    opened = open_rows(saved / "dict", **keys)
    assert opened.data == [conversation(prompt, "yes", "no")]
    assert opened.rows[0].where == f"{saved}/dict/{split}:1"
    (other,) = {"train", "test"} - {split}
    assert opened.passed_over == {other: f"split {other}; name it by 'split' to read it"}


@pytest.mark.parametrize(
    ("folder", "keys", "problem"),
    [
        ("dict", {"split": "dev"}, "there is no split 'dev'; there are: train, test"),
        ("odd", {}, "there is no split 'train'; name one by 'split': first, second"),
        ("held", {}, "there is no split 'train'; name one by 'split': test"),
        ("one", {"split": "train"}, "is a saved data set without splits: remove 'split'"),
        ("one", {"subset": "en"}, "is a saved data set: remove 'subset'"),
        (".", {}, "dict/test is a saved data set; make the path of a source end with this folder"),
    ],
)
def test_a_split_that_a_saved_data_set_lacks(saved: Path, folder: str, keys: Any, problem: str) -> None:
    refused(saved / folder, problem, **keys)


@pytest.mark.parametrize("split", ["../one", "/etc", "", ".."])
def test_a_split_that_leads_out(saved: Path, split: str) -> None:
    change_json(saved / "dict" / "dataset_dict.json", splits=[split, "train"])
    refused(saved / "dict", "dataset_dict.json names .*, which is not in this folder", split="train")


@pytest.mark.parametrize("content", ["{", "{}", '{"_data_files": [{}]}', '{"_data_files": null}'])
def test_a_broken_list_of_files(saved: Path, content: str) -> None:
    files.write_text(saved / "one" / "state.json", content)
    refused(saved / "one", "one: not a readable saved data set: state.json")
