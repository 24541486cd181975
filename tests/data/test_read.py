"""Rows are read from every kind of source, each with its file and line."""

import json
import re
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from automixalign.config.data import TaskSpec
from automixalign.config.sources import parse_task
from automixalign.data.read import Row, _read_hub, read_rows
from automixalign.system.errors import DataError
from tests.data.rows import assistant, conversation, parsed, plain, write_rows
from tests.system.processes import run

ROWS = [plain("one", "a", "b"), plain("zwei ä", "a", "b"), plain("three", "a", "b")]
LINES = [json.dumps(row, ensure_ascii=False) for row in ROWS]


def read(source: Path | str) -> list[Row]:
    return list(read_rows(TaskSpec(name="task", source=str(source)), seed=0))


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
    rows[2] |= {"chosen": [assistant("yes"), {"role": "user", "content": "more"}, assistant("yes")]}
    pq.write_table(pa.Table.from_pylist([{"answer": None, **row} for row in rows]), tmp_path / "a.parquet")
    read_back = read(tmp_path / "a.parquet")
    assert [row.data for row in read_back] == rows
    assert read_back[299].where == f"{tmp_path}/a.parquet:300"
    assert len({parsed(row.data).pair_id for row in read_back}) == 300


def test_a_missing_prompt_in_parquet_is_an_implicit_one(tmp_path: Path) -> None:
    rows = [{"prompt": None, "chosen": "p yes", "rejected": "p no"}, plain("p", "yes", "no")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert [parsed(row.data).prompt for row in read(tmp_path / "a.parquet")] == ["p", "p"]


def test_saved_datasets(tmp_path: Path) -> None:
    rows = [conversation(f"p{number}", "yes", "no", answer="yes") for number in range(3)]
    data = datasets.Dataset.from_list(rows)
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"a": data, "b": data.select([2])}).save_to_disk(tmp_path / "two")
    assert read(tmp_path / "one") == [
        Row(f"{tmp_path}/one:{number}", row) for number, row in enumerate(rows, start=1)
    ]
    assert [(row.where, row.data) for row in read(tmp_path / "two")] == [
        *((f"{tmp_path}/two/a:{number}", rows[number - 1]) for number in (1, 2, 3)),
        (f"{tmp_path}/two/b:1", rows[2]),
    ]


def test_a_folder_of_files_is_read_in_order(tmp_path: Path) -> None:
    write_rows(tmp_path / "b.jsonl", [ROWS[0]])
    write_rows(tmp_path / "a" / "x.json", [ROWS[1]])
    pq.write_table(pa.Table.from_pylist([ROWS[2]]), tmp_path / "c.parquet")
    (tmp_path / "README.md").write_text("no rows")
    write_rows(tmp_path / ".ipynb_checkpoints" / "b.jsonl", [ROWS[0]])
    write_rows(tmp_path / "._b.jsonl", [ROWS[0]])
    (tmp_path / "folder.json").mkdir()
    expected = [
        Row(f"{tmp_path}/a/x.json:1", ROWS[1]),
        Row(f"{tmp_path}/b.jsonl:1", ROWS[0]),
        Row(f"{tmp_path}/c.parquet:1", ROWS[2]),
    ]
    assert read(tmp_path) == read(f"{tmp_path}/") == expected


@pytest.mark.parametrize("source", ["file", "a/b/c", "./a", "../a", "/a", "~/a", "a/b.jsonl", "a/b.parquet"])
def test_a_missing_path_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    for look in (read, lambda source: parse_task("task", source).fingerprint()):
        with pytest.raises(DataError, match=f"task task: {re.escape(source)} does not exist"):
            look(source)


def test_a_hub_id_that_cannot_be_reached(tmp_path: Path) -> None:
    """In a process of its own: datasets reads HF_HUB_OFFLINE once."""
    code = (
        "from automixalign.config.data import TaskSpec\n"
        "from automixalign.data.read import read_rows\n"
        "list(read_rows(TaskSpec(name='t', source='owner/name', hub_split='dev'), seed=0))\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "", "HOME": str(tmp_path)}
    ended = run(code, check=False, env=environment)
    assert ended.returncode == 1
    assert "DataError: task t: owner/name is neither a local path nor a readable hub data set" in ended.stderr
    assert "'dev'" in ended.stderr


def test_a_hub_data_set_is_read_by_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the path of a hub id, on local files: one split, without absent fields."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = {
        "train": [conversation("p", "yes", "no", answer="yes"), conversation("hi", "yes", "no")],
        "test": [conversation("q", "yes", "no")],
    }
    for split, some in rows.items():
        write_rows(tmp_path / "hub" / f"{split}.jsonl", some)
    for split, some in rows.items():
        task = TaskSpec(name="task", source=str(tmp_path / "hub"), hub_split=split)
        expected = [Row(f"{tmp_path}/hub[{split}]:{number}", row) for number, row in enumerate(some, start=1)]
        assert list(_read_hub(task)) == expected


def test_synthetic_rows() -> None:
    task = TaskSpec(name="task", source="synthetic:arithmetic", limit=5)
    rows = list(read_rows(task, seed=1))
    assert [row.where for row in rows] == [f"synthetic:arithmetic:{number}" for number in range(1, 6)]
    assert rows == list(read_rows(task, seed=1))
    assert rows != list(read_rows(task, seed=2))
    assert len({parsed(row.data).pair_id for row in rows}) == 5


def test_fingerprints_follow_the_content(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "folder" / "a.jsonl", ROWS)
    sources = [parse_task("task", str(path)) for path in (file, file.parent)]
    before = [source.fingerprint() for source in sources]
    write_rows(tmp_path / "folder" / ".hidden.jsonl", ROWS)
    assert [source.fingerprint() for source in sources] == before
    write_rows(file, ROWS[:2])
    assert all(source.fingerprint() != old for source, old in zip(sources, before, strict=True))
