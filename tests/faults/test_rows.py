"""Preference data that cannot be used: refused before the run by file and line, or counted and dropped."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from automixalign.data.store import SPLITS, read_split
from benchmarks import tiny
from tests.data.rows import conversation, plain
from tests.faults.command_line import CONFIG, CommandLine, ama, experiment
from tests.faults.common import Damage, remove, write

Data = dict[str, Any]
Write = Callable[[Path], object]
SOURCE = "own.jsonl"


def pair(number: int = 0, **changes: Any) -> Data:
    """A valid row with these changes."""
    return {**conversation(f"say {number}", f"{number}", "no"), **changes}


def text(number: int = 0, **changes: Any) -> Data:
    """A valid row of plain text with these changes."""
    return {**plain(f"say {number}:", f" {number}", " no"), **changes}


def message(role: Any, content: Any = "x") -> list[Data]:
    """One message."""
    return [{"role": role, "content": content}]


USER, ASSISTANT, SYSTEM = message("user"), message("assistant"), message("system")
GOOD = [pair(number) for number in range(12)]


def lines(rows: Iterable[Any]) -> bytes:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


# Right to left, emoji of several code points, combining marks, and U+2028, which ends no line of JSON.
SCRIPTS = [
    *("שלום עולם", "مرحبا", "👩‍👩‍👧‍👦 🏳️‍🌈", "e\u0301 n\u0303", "a\u2028b\u0085c", "\u202eright\u202c"),
    *("\U0001d518", "\ufeffx", "漢字"),
]
MANY_SCRIPTS = [pair(number, chosen=message("assistant", words)) for number, words in enumerate(SCRIPTS)]


def configure(cli: CommandLine, source: str, **task: Any) -> None:
    """Write a configuration with this source for its second task."""
    cli.configure(experiment({"tasks.1": {"name": "own", "source": source, **task}}))


def folder(files: Mapping[str, bytes]) -> Write:
    """Write these files."""

    def write(folder: Path) -> None:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    return write


def parquet(rows: list[Data], cut: int | None = None) -> Write:
    """Write `own.parquet`, or its first bytes."""

    def write(folder: Path) -> None:
        file = folder / "own.parquet"
        pq.write_table(pa.Table.from_pylist(rows), file)
        file.write_bytes(file.read_bytes()[:cut])

    return write


def saved_data_set(damage: Damage) -> Write:
    """Write a data set as `datasets` saves it, and damage it."""

    def write(folder: Path) -> None:
        datasets.Dataset.from_list(GOOD).save_to_disk(folder / "saved")
        damage(folder / "saved")

    return write


def bad(
    name: str, what: bytes | Data | Write, *parts: str, source: str = SOURCE, task: Data | None = None
) -> Any:
    """A file that is refused; given a row, it is the third of a file whose other rows are valid."""
    if isinstance(what, dict):
        parts = (f"{SOURCE}:3: ", *parts)
        what = lines([GOOD[0], GOOD[1], what, *GOOD[3:]])
    return pytest.param(what, parts, source, task or {}, id=name)


def bad_parquet(name: str, write: Write, part: str) -> Any:
    """An `own.parquet` that is refused."""
    return bad(name, write, f"own.parquet{part}", source="own.parquet")


DEEP = b'{"chosen": ' + b"[" * 990 + b"]" * 990 + b', "rejected": "b"}\n'
SAVED = "saved: not a readable saved data set"
HALF = len(lines(GOOD)) // 2

BAD = [
    # What is no JSON line.
    bad("not JSON", b"hello\n", "own.jsonl:1: not a JSON document"),
    bad("a row cut short", lines(GOOD)[:HALF], "own.jsonl:", "not a JSON document"),
    bad("Python's quotes", lines(GOOD[:1]) + b"{'prompt': 'a'}\n", "own.jsonl:2: not a JSON document"),
    bad("CSV", b"prompt,chosen,rejected\na,b,c\n", "own.jsonl:1: not a JSON document"),
    bad(
        "JSON over several lines",
        json.dumps(GOOD, indent=1).encode(),
        "own.jsonl:1: ",
        "line must be a complete",
    ),
    bad("JSON array on one line", json.dumps(GOOD).encode(), "own.jsonl:1: a row must be an object, not ["),
    bad("a row that is null", b"null\n", "own.jsonl:1: a row must be an object, not None"),
    bad("a duplicate field", b'{"chosen": "a", "chosen": "b"}', "own.jsonl:1: ", "'chosen' occurs twice"),
    bad("number of 5,000 digits", lines(GOOD[:1]) + b'{"a": ' + b"1" * 5000 + b"}", "own.jsonl:2: Exceeds"),
    bad("nested 100,000 deep", b"[" * 100_000, "own.jsonl:1: ", "nested too deep"),
    bad("nested just as deep as JSON may be", DEEP, "own.jsonl:1: "),
    bad("a line of more than 64 MiB", b'"' + b"x" * (65 << 20), "own.jsonl:1: the line is longer than 64 MiB"),
    # Encodings.
    bad("UTF-16", lines(GOOD).decode().encode("utf-16"), "own.jsonl: ", "its text is UTF-16; save it as UTF-8"),
    bad("Latin-1", lines(GOOD[:2]) + '{"prompt": "café"}'.encode("latin-1"), "own.jsonl:3: not UTF-8"),
    bad("a byte order mark inside", lines(GOOD[:1]) + b"\xef\xbb\xbf" + lines(GOOD), "own.jsonl:2: not a JSON"),
    bad("NUL", pair(rejected=message("assistant", "a\0b")), "rejected[0] holds a NUL"),
    bad("half a surrogate pair", json.dumps(text(chosen="\ud800")).encode(), "chosen", "half a surrogate"),
    # Fields.
    bad("a text for a row", b'"text"\n', "own.jsonl:1: a row must be an object, not 'text'"),
    bad("an empty row", {}, "the field 'chosen' is missing"),
    bad("no 'rejected'", {"prompt": "a", "chosen": "b"}, "the field 'rejected' is missing"),
    bad("a misspelt field", {"prompt": "a", "choosen": "b", "rejected": "c"}, "the field 'chosen' is missing"),
    bad("a number for a text", text(chosen=3), "'chosen' must be text or a list of messages, not 3"),
    bad("null for a text", text(rejected=None), "the field 'rejected' is null"),
    bad("an object for a text", text(prompt={"a": [1]}), "'prompt' must be text if a side is text"),
    bad("an empty list of messages", pair(chosen=[]), "'chosen' must be", "not an empty list"),
    bad("text and messages in a row", pair(chosen="yes"), "'prompt' must be text if a side is text"),
    bad("no prompt and no common beginning", {"chosen": "yes", "rejected": "no"}, "there is no 'prompt'"),
    bad("a prompt of text, sides of messages", pair(prompt="hi"), "set 'format: ultrafeedback'"),
    bad("sides of two kinds", {"chosen": "hi yes", "rejected": USER}, "must both be text or"),
    bad("a text for a message", pair(chosen=["yes"]), "chosen[0] must be an object with 'role' and 'content'"),
    bad("a message without content", pair(chosen=[{"role": "assistant"}]), "chosen[0] must be an object with"),
    bad("a null content", pair(rejected=message("assistant", None)), "rejected[0] must be an object with"),
    bad("NUL in a text", text(chosen="b\0"), "'chosen' holds a NUL"),
    bad(
        "half pair in a message", json.dumps(pair(prompt=message("user", "\ud800"))).encode(), "'prompt' holds"
    ),
    bad("blanks alone in common", {"chosen": "  yes", "rejected": "  no"}, "there is no 'prompt'"),
    bad("a side that is the beginning", {"chosen": "a", "rejected": "a b"}, "there is no 'prompt'"),
    bad(
        "no prompt in messages",
        {"chosen": ASSISTANT, "rejected": message("assistant", "b")},
        "there is no 'prompt'",
    ),
    bad("a message without role", pair(chosen=[{"content": "a"}]), "chosen[0] must be an object with 'role'"),
    bad("a prompt without a user", pair(prompt=message("human")), "'prompt' holds no user message"),
    bad("a role that is a list", pair(prompt=[*USER, *message(["user"])]), "prompt[1] must be an object with"),
    bad(
        "an image among the parts of a content",
        pair(prompt=message("user", [{"type": "text", "text": "a"}, {"type": "image", "url": "b"}])),
        "prompt[0] has a content part of type 'image'",
    ),
    # Roles out of order.
    bad("a system-only prompt", pair(prompt=SYSTEM), "'prompt' holds no user message"),
    bad("assistant ends the prompt", pair(prompt=USER + ASSISTANT), "must end before the assistant's turn"),
    bad("an answer by the user", pair(chosen=USER), "'chosen' must begin and end with an assistant"),
    bad("an answer that ends with the user", pair(rejected=ASSISTANT + USER), "'rejected' must begin and end"),
    # Answers.
    bad(
        "one row without an answer for a verifier",
        lines([*(row | {"answer": "1"} for row in GOOD), pair(99)]),
        "own.jsonl:13: the verifier 'exact' needs an 'answer' in every row",
        "say 99",
        task={"verifier": "exact"},
    ),
    bad("an answer that is a number", pair(answer=4), "'answer' must be text, not int"),
    bad(
        "an answer without number for `number`",
        lines(pair(n, answer="four") for n in range(9)),
        "task own: 9 bad rows:",
        "own.jsonl:9: the verifier 'number' can never pass the answer 'four'",
        task={"verifier": "number"},
    ),
    # What leaves nothing.
    bad("an empty file", b"", "task own: own.jsonl holds no usable pair", "0 read"),
    bad("blank lines alone", b"\n \r\n\n", "task own: own.jsonl holds no usable pair", "0 read"),
    bad("every chosen = rejected", lines(text(n, rejected=f" {n}") for n in range(9)), "9 identical_sides"),
    bad("all rows identical", lines([GOOD[0]] * 9), "task own: 1 usable pairs with 1 prompts", "'split'"),
    bad(
        "every pair contradicted",
        lines(text(n % 3, chosen="ab"[n < 3], rejected="ba"[n < 3]) for n in range(6)),
        "task own: ",
        "6 contradictory",
    ),
    bad("two rows", lines(GOOD[:2]), "task own: 2 usable pairs with 2 prompts leave its train split empty"),
    bad("one row", lines(GOOD[:1]), "task own: 1 usable pairs with 1 prompts leave its train split empty"),
    bad(
        "one prompt for all rows",
        lines(pair(7, rejected=message("assistant", str(n))) for n in range(50, 70)),
        "task own: 20 usable pairs with 1 prompts",
    ),
    bad("messages after text", lines([text(), *GOOD]), "task own: mixes plain text and messages"),
    # Files and folders.
    bad("no such file", folder({}), "task own: own.jsonl does not exist"),
    bad("wrong suffix", folder({"own.txt": b""}), "own.txt: unknown kind of file", ".jsonl", source="own.txt"),
    bad(
        "a folder without data", folder({"data/notes.md": b""}), "data: no data file", "notes.md", source="data"
    ),
    bad(
        "bad file in folder", folder({"data/b/c.jsonl": b"{\n"}), "data/b/c.jsonl:1: not a JSON", source="data"
    ),
    bad("a name of 5,000 letters", folder({}), "task own: ", "cannot be read", source="x" * 900 + ".jsonl"),
    bad("a link to itself", lambda f: (f / SOURCE).symlink_to(SOURCE), "task own: own.jsonl does not exist"),
    bad("an endless pipe", lambda f: os.mkfifo(f / SOURCE), "own.jsonl is neither a file nor a folder"),
    # Parquet and saved data sets.
    bad_parquet("an empty Parquet file", folder({"own.parquet": b""}), ": not a readable Parquet"),
    bad_parquet("text in its place", folder({"own.parquet": lines(GOOD)}), ": not a readable Parquet"),
    bad_parquet("Parquet cut short", parquet(GOOD, cut=-20), ": not a readable Parquet"),
    bad_parquet("Parquet lacks the columns", parquet([{"question": "a"}]), ":1: the field 'chosen' is missing"),
    bad_parquet("Parquet with numbers", parquet([text(chosen=1)]), ":1: 'chosen' must be text"),
    bad("a broken saved data set", saved_data_set(write("state.json", "[]")), SAVED, source="saved"),
    bad("a saved data set cut short", saved_data_set(write("state.json", "{")), SAVED, source="saved"),
    bad(
        "a saved data set without rows",
        saved_data_set(remove("*.arrow")),
        "saved: not a readable",
        source="saved",
    ),
]


@pytest.mark.parametrize(("what", "parts", "source", "task"), BAD)
def test_refused(
    cli: CommandLine, what: bytes | Write, parts: tuple[str, ...], source: str, task: Data
) -> None:
    if isinstance(what, bytes):
        (cli.folder / source).write_bytes(what)
    else:
        what(cli.folder)
    configure(cli, source, **task)
    cli.refuses(*parts)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        pytest.param("data/a.jsonl", "data/a.jsonl", id="a file"),
        pytest.param("data/more", "data", id="a folder"),
        pytest.param("data", "data/a.jsonl", id="the folder above"),
    ],
)
def test_without_permission(cli: CommandLine, path: str, source: str) -> None:
    folder({"data/a.jsonl": lines(GOOD), "data/more/b.jsonl": lines(GOOD)})(cli.folder)
    configure(cli, source)
    cli.accepts()
    (cli.folder / path).chmod(0)
    cli.unprivileged = True
    try:
        cli.refuses(source, "ermission denied")
    finally:
        (cli.folder / path).chmod(0o755)


def test_more_tasks_than_rows(cli: CommandLine) -> None:
    (cli.folder / SOURCE).write_bytes(lines(GOOD[:3]))
    tasks = [{"name": f"t{number}", "source": SOURCE, "limit": 1} for number in range(4)]
    cli.configure(experiment({"tasks": tasks}))
    cli.refuses("task t0: 1 usable pairs", "'split'")


def test_a_bad_row_in_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / SOURCE).write_bytes(lines([*GOOD, pair(chosen=[])]))
    (tmp_path / CONFIG).write_text(experiment({"tasks.1": {"name": "own", "source": str(tmp_path / SOURCE)}}))
    ended = ama("run", "--config", tmp_path / CONFIG, "--output", tmp_path / "out")
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("\n") == 1
    assert f"{SOURCE}:13: " in ended.stderr
    assert not (tmp_path / "out").exists()


def prepared(cli: CommandLine, base_model: Path, content: bytes) -> tuple[dict[str, int], list[Data]]:
    """The counts on the card of a file that is accepted, but zeros, and the rows that stay."""
    (cli.folder / SOURCE).write_bytes(content)
    configure(cli, SOURCE)
    cli.accepts()
    data = cli.folder / "data"
    card = tiny.prepare_source(cli.folder / SOURCE, base_model, data, 64)
    rows = [row for split in SPLITS for row in read_split(data, "task", split).to_pylist()]
    return {reason: count for reason, count in card["tasks"][0]["rows"].items() if count}, rows


@pytest.mark.parametrize(
    ("content", "counts", "rows"),
    [
        pytest.param(b"\xef\xbb\xbf" + lines(GOOD), {"read": 12}, 12, id="a byte order mark in front"),
        pytest.param(
            lines(GOOD).replace(b"\n", b"\r\n\r\n"), {"read": 12}, 12, id="Windows' line ends and blank lines"
        ),
        pytest.param(
            lines([*GOOD, pair(99, chosen=message("assistant", "y" * 10_000_000))]),
            {"read": 13, "long_answer": 1},
            12,
            id="a row of 10 MB",
        ),
        pytest.param(
            lines([*GOOD, pair(99, prompt=message("user", "long " * 40))]),
            {"read": 13, "prompt_too_long": 1},
            12,
            id="a prompt longer than max_length",
        ),
        pytest.param(lines(GOOD + GOOD[:5]), {"read": 17, "duplicate": 5}, 12, id="duplicate rows"),
        pytest.param(lines(row | {"id": 1} for row in GOOD), {"read": 12}, 12, id="one id for all rows"),
        pytest.param(
            lines([*GOOD, GOOD[0] | {"chosen": GOOD[0]["rejected"], "rejected": GOOD[0]["chosen"]}]),
            {"read": 13, "contradictory": 2},
            11,
            id="a pair preferred both ways",
        ),
        pytest.param(
            lines([*GOOD, pair(99, chosen=message("assistant", "no "))]),
            {"read": 13, "identical_sides": 1},
            12,
            id="chosen = rejected in one row",
        ),
        pytest.param(
            lines(
                [*GOOD, pair(99, prompt=message("user", " \n\t")), pair(98, chosen=message("assistant", ""))]
            ),
            {"read": 14, "empty": 2},
            12,
            id="blanks alone",
        ),
        pytest.param(lines([*GOOD, text(99)]), {"read": 13}, 13, id="text after messages"),
        pytest.param(lines(row | {"answer": " "} for row in GOOD), {"read": 12}, 12, id="an empty answer"),
        pytest.param(
            lines([*GOOD, pair(99, prompt=USER + SYSTEM + USER)]), {"read": 13}, 13, id="a late system message"
        ),
        pytest.param(
            lines(row | {"score": float("nan")} for row in GOOD), {"read": 12}, 12, id="NaN in an unused field"
        ),
    ],
)
def test_accepted(
    cli: CommandLine, base_model: Path, content: bytes, counts: dict[str, int], rows: int
) -> None:
    card, pairs = prepared(cli, base_model, content)
    assert (card, len({pair["pair_id"] for pair in pairs}), len(pairs)) == (counts, rows, rows)


def test_right_to_left_emoji_and_combining_marks_stay_as_they_are(cli: CommandLine, base_model: Path) -> None:
    card, pairs = prepared(cli, base_model, lines(MANY_SCRIPTS))
    assert card == {"read": len(SCRIPTS)}
    assert sorted(pair["chosen"][0]["content"] for pair in pairs) == sorted(SCRIPTS)
