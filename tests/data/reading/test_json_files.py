"""JSON: one object a line, or one array; a bad row is named, and reading goes on."""

import json
import re
from pathlib import Path

import pytest

from automixalign.data.reading import json_files, streams
from automixalign.data.reading.row import Unreadable
from tests.data.reading.reading import LINES, ROWS, open_rows, refused
from tests.data.rows import plain


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
    opened = open_rows(source)
    assert opened.data == ROWS
    lines = [number for number, line in enumerate(content.splitlines(), start=1) if line.strip()]
    assert [row.where for row in opened.rows] == [f"{source}:{number}" for number in lines]


BAD_LINES = {
    b'{"prompt": "one", "chosen"': "not a JSON document: Expecting ':' delimiter at column 27",
    b'{"a": 1} {"b": 2}': "not a JSON document: Extra data at column 10",
    b'{"a": "\xff"}': "not UTF-8 .* position 7.*save the file as UTF-8",
    b'["a"]': r"a row must be an object, not \['a'\]",
    b'"a"': "a row must be an object, not 'a'",
    b"null": "a row must be an object, not None",
    b'{"a": 1, "b": 2, "a": 3}': "the field 'a' occurs twice",
    b'{"a": [{"role": "x", "role": "y"}]}': "the field 'role' occurs twice",
    b"[" * 100_000: "nested too deeply",
    b'{"a": ' + b"1" * 5000 + b"}": "4300 digits",
}


@pytest.mark.parametrize(("line", "problem"), BAD_LINES.items(), ids=range(len(BAD_LINES)))
def test_a_bad_line_is_named_and_the_next_is_read(tmp_path: Path, line: bytes, problem: str) -> None:
    source = tmp_path / "a.jsonl"
    source.write_bytes(b"\n".join([LINES[0].encode(), line, LINES[1].encode()]))
    first, bad, last = open_rows(source).rows
    assert (first.data, last.data) == (ROWS[0], ROWS[1])
    assert bad.where == f"{source}:2"
    assert isinstance(bad.data, Unreadable)
    assert re.search(problem, bad.data.problem)


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
@pytest.mark.parametrize("length", [90, 200, 201, 250])
def test_a_line_that_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, length: int
) -> None:
    for module in (streams, json_files):
        monkeypatch.setattr(module, "MAX_LINE_BYTES", 100)
    head, long, good = {
        "jsonl": ["", f'"{"x" * (length - 2)}"', json.dumps(plain("p", "a", "b"))],
        "csv": ["prompt,chosen,rejected\n", "x" * (length - 4) + ",a,b", "p,a,b"],
    }[suffix]
    source = tmp_path / f"a.{suffix}"
    source.write_text(f"{head}{long}\n{good}")
    bad, last = open_rows(source).rows
    assert last.data == plain("p", "a", "b")
    assert last.where == f"{source}:{3 if head else 2}"
    assert ("longer than" in str(bad.data)) == (length > 99)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("space", ["", " ", "\r\n"])
def test_an_array_is_read_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, space: str
) -> None:
    monkeypatch.setattr(json_files, "_CHUNK", chunk)
    values = [LINES[0], '{"a": 1, "a": 2}', "12345", '"text"', LINES[1]]
    source = tmp_path / "a.json"
    source.write_text(f"\ufeff{space}[{space}" + f"{space},{space}".join(values) + f"{space}]{space}")
    assert open_rows(source).data == [
        ROWS[0],
        Unreadable("the field 'a' occurs twice"),
        Unreadable("a row must be an object, not 12345"),
        Unreadable("a row must be an object, not 'text'"),
        ROWS[1],
    ]


@pytest.mark.parametrize("text", ["[]", " [ ] \n"])
def test_an_empty_array_holds_no_rows(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert open_rows(tmp_path / "a.json").rows == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[{"a": 1},\n{"a": 2', "in the row that begins at line 2"),
        ('[{"a": 1}', "the array breaks off at line 1"),
        ('[{"a": 1}\n{"a": 2}]', "the array breaks off at line 2"),
        ('[{"a": 1}]\n{"a": 2}', "line 2 has text after the end of the array"),
        ('[{"a": 1},\n{"a": nothing}]', "in the row that begins at line 2"),
        ("[" * 100_000, "nested too deeply"),
        ('{"data": [{"a": 1}]}', ":1: the rows are inside the field 'data'; write one object a line"),
        ('{\n"data": [{"a": 1}]}', "its first line is not a complete object; write one object a line"),
        ('{"version": 1,\n"data": [{"a": 1}]}', "its first line is not a complete object"),
    ],
)
def test_a_json_file_without_rows_to_tell_apart(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "a.json").write_text(text)
    refused(tmp_path / "a.json", problem)


def test_an_array_that_is_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'[{"a": "\xff"}]')
    refused(tmp_path / "a.json", "not a readable JSON file: 'utf-8' codec")
