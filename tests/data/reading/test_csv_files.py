"""CSV and TSV: records may span lines, and cells may hold messages as JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

from automixalign.data.reading.row import Unreadable
from tests.data.reading.reading import open_rows, refused
from tests.data.rows import assistant, plain, user

HEADER = "prompt,chosen,rejected\n"


def write(folder: Path, text: str | bytes, name: str = "a.csv") -> Path:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / name


def test_a_record_is_named_by_the_line_where_it_begins(tmp_path: Path) -> None:
    path = write(tmp_path, '\ufeffprompt,chosen,rejected\r\n"a\r\n\r\nb","x ""y""",z\r\n\r\nc,d,e\r\n')
    rows = open_rows(path).rows
    assert [row.where for row in rows] == [f"{path}:2", f"{path}:6"]
    assert [row.data for row in rows] == [plain("a\r\n\r\nb", 'x "y"', "z"), plain("c", "d", "e")]


def test_an_empty_cell_is_an_empty_text(tmp_path: Path) -> None:
    assert open_rows(write(tmp_path, f"{HEADER}a,,c\n")).data == [plain("a", "", "c")]


def test_a_long_cell(tmp_path: Path) -> None:
    text = "x" * 200_000
    assert open_rows(write(tmp_path, f"{HEADER}{text},b,c\n")).data == [plain(text, "b", "c")]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (json.dumps([user("q"), assistant("a")]), [user("q"), assistant("a")]),
        ('{"tools": []}', {"tools": []}),
        ("[1, 2]", "[1, 2]"),
        ("[]", "[]"),
        ("[note] see below", "[note] see below"),
        ("{broken", "{broken"),
        ("17", "17"),
        ("null", "null"),
    ],
)
def test_cells_with_objects_are_decoded(tmp_path: Path, text: str, value: Any) -> None:
    quoted = text.replace('"', '""')
    assert open_rows(write(tmp_path, f'a,b\n"{quoted}",x\n')).data == [{"a": value, "b": "x"}]


BAD_RECORDS = {
    b"a,b\n": "it has 2 cells, and the header names 3 columns",
    b"a,b,c,d\n": "it has 4 cells, and the header names 3 columns; put a cell that holds ',' in",
    b"a,\xff,c\n": "not UTF-8",
    b'"a"b,b,c\n': "not a CSV record: ',' expected after '\"'",
    b"\"[{'role': 'user', 'content': 'q'}]\",b,c\n": "'prompt' is a Python list, not JSON; write it with json",
    b"\"[{'id': 1, 'role': 'user', 'content': 'q'}]\",b,c\n": "'prompt' is a Python list, not JSON",
    b"\"array([{'role': 'user', 'content': 'q'}], dtype=object)\",b,c\n": "'prompt' is a Python list, not JSON",
}


@pytest.mark.parametrize(("record", "problem"), BAD_RECORDS.items(), ids=range(len(BAD_RECORDS)))
def test_a_bad_record_is_named_and_the_next_is_read(tmp_path: Path, record: bytes, problem: str) -> None:
    path = write(tmp_path, HEADER.encode() + record + b"d,e,f\n")
    bad, last = open_rows(path).rows
    assert isinstance(bad.data, Unreadable)
    assert problem in bad.data.problem
    assert bad.where == f"{path}:2"
    assert last.data == plain("d", "e", "f")


def test_a_quote_that_is_never_closed(tmp_path: Path) -> None:
    path = write(tmp_path, f'{HEADER}a,b,c\nd,"e,f\ng,h,i\n')
    _, bad = open_rows(path).rows
    assert bad.where == f"{path}:3"
    assert isinstance(bad.data, Unreadable)
    assert "is a quote not closed" in bad.data.problem


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (",prompt,chosen", "a column has no name in the header"),
        ("prompt, ,chosen", "a column has no name in the header"),
        ("prompt,chosen,prompt", "the header names the column 'prompt' twice"),
        ("prompt;chosen", "its columns are separated by ';'; separate them by ','"),
        ('"prompt,chosen', "its header: not a CSV record"),
        (b"prompt,\xff", "its header: not UTF-8"),
    ],
)
def test_a_bad_header(tmp_path: Path, header: str | bytes, problem: str) -> None:
    refused(write(tmp_path, header), f"a.csv: not a readable CSV file: {problem}")


@pytest.mark.parametrize("text", ["", HEADER])
def test_a_file_without_records(tmp_path: Path, text: str) -> None:
    assert open_rows(write(tmp_path, text)).rows == []


def test_tabs_separate_the_cells_of_tsv(tmp_path: Path) -> None:
    path = write(tmp_path, "prompt\tchosen\trejected\na, b\tc\td\n", "a.tsv")
    assert open_rows(path).data == [plain("a, b", "c", "d")]
