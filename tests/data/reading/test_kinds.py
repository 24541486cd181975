"""Every kind of file is read, compressed or not, whatever the case of its ending."""

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from automixalign.config.sources import COMPRESSIONS, DATA_SUFFIXES
from automixalign.data.reading.row import Row
from tests.data.reading.reading import LINES, ROWS, compress, open_rows, refused

TABLE = pa.Table.from_pylist(ROWS)


def delimited(delimiter: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(ROWS[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def arrow_stream() -> bytes:
    with pa.BufferOutputStream() as sink:
        with pa.ipc.new_stream(sink, TABLE.schema) as writer:
            writer.write_table(TABLE)
        return sink.getvalue().to_pybytes()


def arrow_file() -> bytes:
    with pa.BufferOutputStream() as sink:
        with pa.ipc.new_file(sink, TABLE.schema) as writer:
            writer.write_table(TABLE, max_chunksize=2)
        return sink.getvalue().to_pybytes()


def parquet() -> bytes:
    with pa.BufferOutputStream() as sink:
        pq.write_table(TABLE, sink)
        return sink.getvalue().to_pybytes()


CONTENTS = [
    (".jsonl", "\n".join(LINES).encode(), (1, 2, 3)),
    (".ndjson", "\n".join(LINES).encode(), (1, 2, 3)),
    (".json", "\n".join(LINES).encode(), (1, 2, 3)),
    (".json", json.dumps(ROWS, indent=1).encode(), (2, 7, 12)),
    (".csv", delimited(","), (2, 3, 4)),
    (".tsv", delimited("\t"), (2, 3, 4)),
    (".parquet", parquet(), (1, 2, 3)),
    (".arrow", arrow_stream(), (1, 2, 3)),
    (".arrow", arrow_file(), (1, 2, 3)),
]


@pytest.mark.parametrize("change_case", [str.lower, str.upper, str.title])
@pytest.mark.parametrize("compression", ["", *COMPRESSIONS])
@pytest.mark.parametrize(("suffix", "content", "lines"), CONTENTS)
def test_every_kind_is_read(
    tmp_path: Path,
    suffix: str,
    content: bytes,
    lines: tuple[int, ...],
    compression: str,
    change_case: type[str],
) -> None:
    path = tmp_path / f"rows{change_case(suffix + compression)}"
    path.write_bytes(compress(content, compression))
    expected = [Row(f"{path}:{line}", row) for line, row in zip(lines, ROWS, strict=True)]
    assert open_rows(path).rows == expected


def test_the_test_above_knows_every_kind() -> None:
    assert {suffix for suffix, _, _ in CONTENTS} == set(DATA_SUFFIXES)


@pytest.mark.parametrize("suffix", DATA_SUFFIXES)
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_compressed_file_that_ends_in_the_middle(tmp_path: Path, suffix: str, compression: str) -> None:
    content = next(content for kind, content, _ in CONTENTS if kind == suffix)
    path = tmp_path / f"rows{suffix}{compression}"
    path.write_bytes(compress(content, compression)[:-5])
    refused(path, f"^{path}: not a readable .* file: Truncated compressed stream$")


@pytest.mark.parametrize("content", [b"", b"no rows"])
@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".jsonl.gz", ".jsonl.zst"])
def test_a_file_of_another_kind(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(content)
    refused(path, f"^{path}: not a readable ")


def test_a_file_that_is_only_named_as_compressed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_text("\n".join(LINES))
    refused(path, f"^{path}: .*: its content is not gzip, although its name ends in .gz$")


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv"])
def test_utf_16_is_refused_by_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_text("\n".join(LINES), encoding="utf-16")
    refused(path, f"^{path}: .*its text is UTF-16; save it as UTF-8")


@pytest.mark.parametrize("name", ["rows.txt", "rows", "rows.xlsx", "rows.jsonl.bz2"])
def test_an_unknown_kind_of_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("\n".join(LINES))
    refused(tmp_path / name, r"unknown kind of file; convert or unpack it; the kinds are: \.jsonl, .*\.zst")


@pytest.mark.parametrize("key", ["split", "subset", "data_dir"])
def test_one_file_has_no_parts_to_select(tmp_path: Path, key: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(LINES))
    refused(path, f"is one file: remove '{key}'", **{key: "train"})


def test_a_file_that_is_named_is_read_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "test" / "test.jsonl"
    path.parent.mkdir()
    path.write_text("\n".join(LINES))
    assert open_rows(path).data == ROWS
    assert open_rows(path.parent.parent / "test", split="test").data == ROWS


def test_a_revision_is_refused_away_from_the_hub(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    refused(tmp_path / "a.jsonl", "is not on the hub: remove 'revision'", revision="main")
