"""Sources that are no files: names without a file, and generated rows."""

import re
from pathlib import Path

import pytest

from automixalign.config.data import SourceSpec
from automixalign.config.sources import parse_task
from automixalign.data.reading.rows import open_source
from automixalign.system.errors import DataError
from tests.data.reading.reading import ROWS, open_rows, refused
from tests.data.rows import parsed, write_rows

MISSING = ["file", "a/b/c", "./a", "../a", "/a", "~/a", "a/b.jsonl", "a/b.parquet", "a/b.CSV.gz"]


@pytest.mark.parametrize("source", MISSING)
def test_a_missing_path_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    refused(source, f"task task: {re.escape(source)} does not exist")
    with pytest.raises(DataError, match=f"task task: {re.escape(source)} does not exist"):
        parse_task("task", SourceSpec(path=source)).fingerprint()


def test_generated_rows() -> None:
    spec = SourceSpec(path="synthetic:arithmetic")

    def generated(seed: int) -> list[object]:
        with open_source("task task", spec, seed=seed, generated_rows=5) as source:
            return list(source)

    rows = generated(1)
    assert [row.where for row in rows] == [f"synthetic:arithmetic:{number}" for number in range(1, 6)]
    assert rows == generated(1)
    assert rows != generated(2)
    assert len({parsed(row.data).pair_id for row in rows}) == 5


def test_generated_rows_have_no_splits() -> None:
    refused("synthetic:arithmetic", "is generated: remove 'split'", split="train", limit=5)


def test_fingerprints_follow_the_content(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "folder" / "a.jsonl", ROWS)
    sources = [parse_task("task", SourceSpec(path=str(path))) for path in (file, file.parent)]
    before = [source.fingerprint() for source in sources]
    write_rows(tmp_path / "folder" / ".hidden.jsonl", ROWS)
    assert [source.fingerprint() for source in sources] == before
    write_rows(file, ROWS[:2])
    assert all(source.fingerprint() != old for source, old in zip(sources, before, strict=True))


def test_a_path_is_read_with_the_rights_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").symlink_to(write_rows(tmp_path / "elsewhere.jsonl", ROWS))
    assert open_rows(tmp_path / "data").data == ROWS
