"""Preference data that cannot be used, or only in part: refused by file and line, or counted and dropped."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.faults._refusals import CONFIG, accepted, experiment, refused
from benchmarks.faults.case import Case, UnexpectedError, ama

Data = dict[str, Any]
Write = Callable[[Path], object]

GROUP = "rows"
SOURCE = "own.jsonl"


def pair(number: int = 0, **changes: Any) -> Data:
    """A good row; the changes make it another."""
    row = {
        "prompt": [{"role": "user", "content": f"say {number}"}],
        "chosen": [{"role": "assistant", "content": f"{number}"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    return row | changes


def text(number: int = 0, **changes: Any) -> Data:
    """A good row of plain text."""
    return {"prompt": f"say {number}:", "chosen": f" {number}", "rejected": " no"} | changes


def said(role: str, content: Any = "x") -> list[Data]:
    """One message."""
    return [{"role": role, "content": content}]


GOOD = [pair(number) for number in range(12)]


def lines(rows: Iterable[Any]) -> bytes:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _configure(folder: Path, source: str, task: Mapping[str, Any]) -> None:
    changes = {"tasks.1": {"name": "own", "source": source, **task}}
    (folder / CONFIG).write_text(experiment(changes), encoding="utf-8")


def _refused(
    name: str,
    what: bytes | Data | Write,
    *says: str,
    source: str = SOURCE,
    task: Mapping[str, Any] | None = None,
) -> Case:
    """Refuse a source: its bytes; or one row, the third of a file whose others are good; or what is written."""

    def run(folder: Path) -> str:
        if callable(what):
            what(folder)
        else:
            content = what if isinstance(what, bytes) else lines([GOOD[0], GOOD[1], what, *GOOD[3:]])
            (folder / source).write_bytes(content)
        _configure(folder, source, task or {})
        return refused(
            folder, *(says if callable(what) or isinstance(what, bytes) else (f"{source}:3: ", *says))
        )

    return Case(GROUP, name, f"refused: {', '.join(says)}", run)


def _kept(name: str, content: bytes, expected: Mapping[str, int], check: Callable[[list[Data]], bool]) -> Case:
    """Accept a source, and hold what is counted, and what is left of it, against what must be."""

    def run(folder: Path) -> str:
        from automixalign.config.data import DataSettings
        from automixalign.data.store import read_split
        from benchmarks import tiny
        from benchmarks.faults._models import small_model

        (folder / SOURCE).write_bytes(content)
        _configure(folder, SOURCE, {})
        accepted(folder)
        source = {"name": "own", "source": str(folder / SOURCE)}
        settings = {"seed": 0, "tasks": [source], "split": {}, "max_length": 64, "fingerprints": [""]}
        base = small_model(folder / "base")
        card = tiny.prepare(DataSettings.model_validate(settings), base, folder / "data")
        counts = {reason: count for reason, count in card["tasks"][0]["rows"].items() if count}
        rows = [
            row
            for split in ("train", "validation", "test")
            for row in read_split(folder / "data", "own", split).to_pylist()
        ]
        if counts != expected or not check(rows):
            raise UnexpectedError(f"{counts}, and {len(rows)} pairs")
        return ", ".join(f"{count} {reason}" for reason, count in counts.items()) + f"; {len(rows)} pairs kept"

    return Case(GROUP, name, f"accepted: {', '.join(f'{count} {key}' for key, count in expected.items())}", run)


# Right to left, emoji of several code points, combining marks, and U+2028, which ends no line of JSON.
SCRIPTS = [
    "שלום עולם",
    "مرحبا",
    "👩‍👩‍👧‍👦 🏳️‍🌈",
    "e\u0301 n\u0303",
    "a\u2028b\u0085c",
    "\u202eright\u202c",
    "\U0001d518",
    "\ufeffx",
    "漢字",
]
MANY_SCRIPTS = [pair(number, chosen=said("assistant", words)) for number, words in enumerate(SCRIPTS)]


def _as_they_were(rows: list[Data]) -> bool:
    return sorted(row["chosen"][0]["content"] for row in rows) == sorted(SCRIPTS)


def _folder(files: Mapping[str, bytes]) -> Write:
    def write(folder: Path) -> None:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    return write


def _parquet(rows: list[Data], cut: int | None = None) -> Write:
    def write(folder: Path) -> None:
        file = folder / "own.parquet"
        pq.write_table(pa.Table.from_pylist(rows), file)
        file.write_bytes(file.read_bytes()[:cut])

    return write


def _saved(folder: Path) -> None:
    datasets.Dataset.from_list(GOOD).save_to_disk(folder / "saved")
    (folder / "saved" / "state.json").write_text("[]")


def _unreadable(name: str, path: str, source: str) -> Case:
    def run(folder: Path) -> str:
        folder.chmod(0o755)
        _folder({"data/a.jsonl": lines(GOOD), "data/more/b.jsonl": lines(GOOD)})(folder)
        _configure(folder, source, {})
        accepted(folder)  # the file itself is good, and all that is needed is imported
        (folder / path).chmod(0)
        try:
            return refused(folder, source, "ermission denied", anybody=True)
        finally:
            (folder / path).chmod(0o755)

    return Case(GROUP, name, "refused: permission denied, and where", run)


def _more_tasks_than_rows(folder: Path) -> str:
    (folder / SOURCE).write_bytes(lines(GOOD[:3]))
    tasks = [{"name": f"t{number}", "source": SOURCE, "limit": 1} for number in range(4)]
    (folder / CONFIG).write_text(experiment({"tasks": tasks}), encoding="utf-8")
    return refused(folder, "task t0: 1 usable pairs", "'split'")


def _own_process(folder: Path) -> str:
    (folder / SOURCE).write_bytes(lines([*GOOD, pair(chosen=[])]))
    _configure(folder, str(folder / SOURCE), {})
    ended = ama("run", "--config", folder / CONFIG, "--output", folder / "out")
    message = ended.stderr.removeprefix("error: ").strip()
    if ended.returncode != 2 or "\n" in message or (folder / "out").exists():
        raise UnexpectedError(f"status {ended.returncode}: {ended.stderr}")
    return message.replace(f"{folder}/", "")


DEEP = b'{"chosen": ' + b"[" * 990 + b"]" * 990 + b', "rejected": "b"}\n'
HALF = len(lines(GOOD)) // 2

CASES: list[Case] = [
    # What is no JSON line.
    _refused("not JSON", b"hello\n", f"{SOURCE}:1: not a JSON document"),
    _refused("a row cut short", lines(GOOD)[:HALF], f"{SOURCE}:", "not a JSON document"),
    _refused("Python's quotes", lines(GOOD[:1]) + b"{'prompt': 'a'}\n", f"{SOURCE}:2: not a JSON document"),
    _refused("CSV", b"prompt,chosen,rejected\na,b,c\n", f"{SOURCE}:1: not a JSON document"),
    _refused(
        "JSON over several lines",
        json.dumps(GOOD, indent=1).encode(),
        f"{SOURCE}:1: ",
        "every line must be one",
    ),
    _refused(
        "a JSON array on one line", json.dumps(GOOD).encode(), f"{SOURCE}:1: a JSON object is needed, not list"
    ),
    _refused("a row that is null", b"null\n", f"{SOURCE}:1: a JSON object is needed, not NoneType"),
    _refused(
        "a field that stands twice",
        lines(GOOD[:1]) + b'{"chosen": "a", "chosen": "b"}',
        f"{SOURCE}:2: ",
        "'chosen' stands twice",
    ),
    _refused(
        "a number of 5,000 digits", lines(GOOD[:1]) + b'{"a": ' + b"1" * 5000 + b"}", f"{SOURCE}:2: not a JSON"
    ),
    _refused("nested 100,000 deep", b"[" * 100_000, f"{SOURCE}:1: ", "nested too deep"),
    _refused("nested just as deep as JSON may be", DEEP, f"{SOURCE}:1: "),
    _refused(
        "a line of more than 64 MiB", b'"' + b"x" * (65 << 20), f"{SOURCE}:1: the line is longer than 64 MiB"
    ),
    # Encodings.
    _refused("UTF-16", lines(GOOD).decode().encode("utf-16"), f"{SOURCE}:1: not UTF-8"),
    _refused("Latin-1", lines(GOOD[:2]) + '{"prompt": "café"}'.encode("latin-1"), f"{SOURCE}:3: not UTF-8"),
    _refused(
        "a byte order mark inside", lines(GOOD[:1]) + b"\xef\xbb\xbf" + lines(GOOD), f"{SOURCE}:2: not a JSON"
    ),
    _refused("NUL", pair(rejected=said("assistant", "a\0b")), "rejected[0] holds a NUL"),
    _refused(
        "half a surrogate pair",
        b'{"prompt": "a", "chosen": "\\ud800", "rejected": "b"}',
        f"{SOURCE}:1: chosen",
        "half a surrogate",
    ),
    # Fields.
    _refused("no 'rejected'", {"prompt": "a", "chosen": "b"}, "the field 'rejected' is missing"),
    _refused(
        "a misspelt field", {"prompt": "a", "choosen": "b", "rejected": "c"}, "the field 'chosen' is missing"
    ),
    _refused("a number for a text", text(chosen=3), "'chosen' must be text or a list of messages, not 3"),
    _refused("null for a text", text(rejected=None), "'rejected' must be text or a list of messages, not None"),
    _refused(
        "an object for a text",
        text(prompt={"a": [1]}),
        "'prompt' must be text or a list of messages, not a dict",
    ),
    _refused("an empty list of messages", pair(chosen=[]), "'chosen' must be", "not an empty list"),
    _refused("an empty text", text(chosen=""), "chosen is empty"),
    _refused("blanks alone", text(prompt=" \n\t"), "prompt is empty"),
    _refused("text and messages in a row", pair(chosen="yes"), "must all be text or all messages"),
    _refused(
        "no prompt, and sides that begin apart", {"chosen": "yes", "rejected": "no"}, "there is no 'prompt'"
    ),
    _refused(
        "a message without role", pair(chosen=[{"content": "a"}]), "chosen[0] must be an object with 'role'"
    ),
    _refused("a role nobody knows", pair(prompt=said("human")), "prompt[0] has the role 'human'"),
    _refused(
        "a role that is a list",
        pair(prompt=[*said("user"), {"role": ["user"], "content": "a"}]),
        "prompt[1] has the role a list",
    ),
    _refused(
        "a content in parts",
        pair(rejected=said("assistant", [{"type": "text", "text": "a"}])),
        "the content of rejected[0] must be text",
    ),
    # Roles out of order.
    _refused("a system-only prompt", pair(prompt=said("system")), "'prompt' holds no user message"),
    _refused(
        "a system message in the middle",
        pair(prompt=said("user") + said("system") + said("user")),
        "a system message may only open",
    ),
    _refused(
        "a prompt that ends with the assistant",
        pair(prompt=said("user") + said("assistant")),
        "must end before the assistant's turn",
    ),
    _refused(
        "an answer by the user", pair(chosen=said("user")), "'chosen' must begin and end with an assistant"
    ),
    _refused(
        "an answer that ends with the user",
        pair(rejected=said("assistant") + said("user")),
        "'rejected' must begin and end",
    ),
    _refused(
        "a system message in an answer",
        pair(chosen=said("assistant") + said("system") + said("assistant")),
        "'chosen' holds one",
    ),
    # Answers.
    _refused(
        "no answer for a verifier",
        lines(GOOD),
        "task own: the verifier 'exact' needs an 'answer'",
        task={"verifier": "exact"},
    ),
    _refused("an answer that is a number", pair(answer=4), "'answer' must be text, not int"),
    _refused("an empty answer", pair(answer=" "), "answer is empty"),
    _refused(
        "an answer without number for `number`",
        lines(pair(n, answer="four") for n in range(9)),
        "task own: the verifier 'number' can never pass the answer 'four'",
        task={"verifier": "number"},
    ),
    # What leaves nothing.
    _refused("an empty file", b"", f"task own: {SOURCE} holds no usable pair", "0 read"),
    _refused("blank lines alone", b"\n \r\n\n", f"task own: {SOURCE} holds no usable pair", "0 read"),
    _refused(
        "every chosen = rejected",
        lines(text(n, rejected=f" {n}") for n in range(9)),
        "task own: ",
        "9 identical_sides",
    ),
    _refused(
        "all rows one and the same", lines([GOOD[0]] * 9), "task own: 1 usable pairs with 1 prompts", "'split'"
    ),
    _refused(
        "every pair contradicted",
        lines(text(n % 3, chosen="ab"[n < 3], rejected="ba"[n < 3]) for n in range(6)),
        "task own: ",
        "6 contradictory",
    ),
    _refused("one row", lines(GOOD[:1]), "task own: 1 usable pairs with 1 prompts leave its train split empty"),
    _refused(
        "one prompt for all rows",
        lines(pair(7, rejected=said("assistant", str(n))) for n in range(50, 70)),
        "task own: 20 usable pairs with 1 prompts",
    ),
    Case(GROUP, "more tasks than rows", "refused: the task, and 'split'", _more_tasks_than_rows),
    _refused(
        "text and messages in a task",
        lines([*GOOD, text()]),
        "task own: mixes plain-text and conversational rows",
    ),
    # Files and folders.
    _refused("no such file", _folder({}), f"task own: {SOURCE} does not exist"),
    _refused(
        "a wrong suffix",
        _folder({"own.txt": lines(GOOD)}),
        "own.txt: unknown kind of file",
        ".jsonl",
        source="own.txt",
    ),
    _refused("a folder without data", _folder({"data/notes.md": b""}), "data: no .jsonl", source="data"),
    _refused(
        "one bad file of a folder",
        _folder({"data/a.jsonl": lines(GOOD), "data/b/c.jsonl": b"{\n"}),
        "data/b/c.jsonl:1: not a JSON",
        source="data",
    ),
    _refused(
        "a name of 5,000 letters", _folder({}), "task own: ", "cannot be read", source="x" * 900 + ".jsonl"
    ),
    _refused(
        "a link to itself",
        lambda folder: (folder / SOURCE).symlink_to(SOURCE),
        f"task own: {SOURCE} does not exist",
    ),
    _refused(
        "a pipe, which never ends",
        lambda folder: os.mkfifo(folder / SOURCE),
        f"task own: {SOURCE} is neither a file nor a folder",
    ),
    _unreadable("a file that may not be read", "data/a.jsonl", "data/a.jsonl"),
    _unreadable("a folder that may not be read", "data/more", "data"),
    _unreadable("a folder above that may not be entered", "data", "data/a.jsonl"),
    # Parquet and saved data sets.
    _refused(
        "an empty Parquet file",
        _folder({"own.parquet": b""}),
        "own.parquet: not a readable Parquet",
        source="own.parquet",
    ),
    _refused(
        "text that is called Parquet",
        _folder({"own.parquet": lines(GOOD)}),
        "own.parquet: not a readable Parquet",
        source="own.parquet",
    ),
    _refused(
        "Parquet cut short",
        _parquet(GOOD, cut=-20),
        "own.parquet: not a readable Parquet",
        source="own.parquet",
    ),
    _refused(
        "Parquet without the columns",
        _parquet([{"question": "a"}]),
        "own.parquet:1: the field 'chosen' is missing",
        source="own.parquet",
    ),
    _refused(
        "Parquet with numbers",
        _parquet([text(chosen=1)]),
        "own.parquet:1: 'chosen' must be text",
        source="own.parquet",
    ),
    _refused("a broken saved data set", _saved, "saved: not a readable saved data set", source="saved"),
    # What is accepted.
    _kept(
        "a byte order mark in front", b"\xef\xbb\xbf" + lines(GOOD), {"read": 12}, lambda rows: len(rows) == 12
    ),
    _kept(
        "Windows' line ends and blank lines",
        lines(GOOD).replace(b"\n", b"\r\n\r\n"),
        {"read": 12},
        lambda rows: len(rows) == 12,
    ),
    _kept("right to left, emoji, combining marks", lines(MANY_SCRIPTS), {"read": 9}, _as_they_were),
    _kept(
        "a row of 10 MB",
        lines([*GOOD, pair(99, chosen=said("assistant", "y" * 10_000_000))]),
        {"read": 13, "cut": 1},
        lambda rows: len(rows) == 13,
    ),
    _kept(
        "a prompt longer than max_length",
        lines([*GOOD, pair(99, prompt=said("user", "long " * 40))]),
        {"read": 13, "prompt_too_long": 1},
        lambda rows: len(rows) == 12,
    ),
    _kept(
        "rows that stand twice",
        lines(GOOD + GOOD[:5]),
        {"read": 17, "duplicate": 5},
        lambda rows: len(rows) == 12,
    ),
    _kept(
        "one id for all rows",
        lines(row | {"id": 1} for row in GOOD),
        {"read": 12},
        lambda rows: len({row["pair_id"] for row in rows}) == 12,
    ),
    _kept(
        "a pair preferred both ways",
        lines([*GOOD, GOOD[0] | {"chosen": GOOD[0]["rejected"], "rejected": GOOD[0]["chosen"]}]),
        {"read": 13, "contradictory": 2},
        lambda rows: len(rows) == 11,
    ),
    _kept(
        "chosen = rejected in one row",
        lines([*GOOD, pair(99, chosen=said("assistant", "no "))]),
        {"read": 13, "identical_sides": 1},
        lambda rows: len(rows) == 12,
    ),
    _kept(
        "NaN in a field that is not used",
        lines(row | {"score": float("nan")} for row in GOOD),
        {"read": 12},
        lambda rows: len(rows) == 12,
    ),
    Case(GROUP, "a bad row, in a process of its own", "refused: one line, file and line", _own_process),
]
