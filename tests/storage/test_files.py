"""Files: whole or absent, digests that see every change, links instead of copies."""

import json
import math
import os
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from automixalign.storage import files


def listing(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_replacing_writes_a_file_and_makes_its_parents(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "file.txt"
    with files.replacing(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
        assert temporary.stat().st_dev == target.parent.stat().st_dev
    assert target.read_text() == "new"
    assert listing(tmp_path) == {"a", "a/b", "a/b/file.txt"}


@pytest.mark.parametrize("as_folder", [False, True])
def test_replacing_leaves_nothing_on_failure(tmp_path: Path, as_folder: bool) -> None:
    with pytest.raises(RuntimeError, match="half way"), files.replacing(tmp_path / "target") as temporary:
        if as_folder:
            temporary.mkdir()
            (temporary / "part").write_text("half")
        else:
            temporary.write_text("half")
        raise RuntimeError("half way")
    assert listing(tmp_path) == set()


def test_replacing_changes_nothing_on_failure(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old").write_text("old")
    with pytest.raises(RuntimeError), files.replacing(folder) as temporary:
        temporary.mkdir()
        raise RuntimeError
    with pytest.raises(FileNotFoundError), files.replacing(folder):
        pass  # a body that forgets to write
    assert listing(tmp_path) == {"folder", "folder/old"}


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_replacing_gives_the_permissions_of_the_umask(tmp_path: Path, umask: int) -> None:
    """safetensors itself lets only the owner read, whatever the umask."""
    linked = tmp_path / "private"
    linked.write_text("of another artifact")
    linked.chmod(0o640)
    before = os.umask(umask)
    try:
        with files.replacing(tmp_path / "model") as folder:
            (folder / "part").mkdir(parents=True)
            save_file({"weight": torch.zeros(2)}, folder / "part" / "model.safetensors")
            files.link(linked, folder / "linked")
        with files.replacing(tmp_path / "one.safetensors") as file:
            save_file({"weight": torch.zeros(2)}, file)
    finally:
        os.umask(before)
    for name in ("model/part/model.safetensors", "one.safetensors"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~umask
    assert linked.stat().st_mode & 0o777 == 0o640


def test_replacing_replaces_a_whole_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old").write_text("old")
    with files.replacing(folder) as temporary:
        temporary.mkdir()
        (temporary / "new").write_text("new")
    assert listing(tmp_path) == {"folder", "folder/new"}


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"text": "käse \u2028 \U0001f600", "numbers": [1, 0.1, None, True]}
    files.write_json(tmp_path / "a.json", value)
    assert files.read_json(tmp_path / "a.json") == value
    assert "käse" in (tmp_path / "a.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_json_that_is_not_json(tmp_path: Path, value: float) -> None:
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(tmp_path / "a.json", {"loss": [value]})
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_jsonl(tmp_path / "a.jsonl", [{"loss": value}])
    assert (tmp_path / "a.json").read_text() == "old"
    assert listing(tmp_path) == {"a.json"}


def test_jsonl_keeps_every_kind_of_line_break_inside_a_row(tmp_path: Path) -> None:
    rows = [{"text": "a\nb\r\nc\u2028d\u2029e\x85f\x0bg\x0ch"}, {"text": ""}, ["list"], 3]
    files.write_jsonl(tmp_path / "a.jsonl", rows)
    assert files.read_jsonl(tmp_path / "a.jsonl") == rows
    assert (tmp_path / "a.jsonl").read_bytes().count(b"\n") == len(rows)
    files.write_jsonl(tmp_path / "none.jsonl", [])
    assert files.read_jsonl(tmp_path / "none.jsonl") == []


def test_table_round_trip(tmp_path: Path) -> None:
    table = pa.table({"id": ["a", "b"], "ids": [[1, 2], []], "answer": ["x", None]})
    files.write_table(tmp_path / "deep" / "a.parquet", table)
    assert files.read_table(tmp_path / "deep" / "a.parquet").equals(table)


def folder_of(root: Path, contents: dict[str, str]) -> Path:
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


BASE = {"a.txt": "one", "sub/b.txt": "two"}


@pytest.mark.parametrize(
    "other",
    [
        {"a.txt": "one", "sub/b.txt": "TWO"},
        {"a.txt": "one", "sub/c.txt": "two"},
        {"a.txt": "one", "b.txt": "two"},
        {"a.txt": "two", "sub/b.txt": "one"},
        {"a.txt": "onet", "sub/b.txt": "wo"},
        {"a.txt": "one"},
        {**BASE, "empty": ""},
    ],
)
def test_digest_covers_names_and_contents(tmp_path: Path, other: dict[str, str]) -> None:
    assert files.digest(folder_of(tmp_path / "x", BASE)) != files.digest(folder_of(tmp_path / "y", other))


def test_digest_ignores_the_path_and_hidden_files(tmp_path: Path) -> None:
    plain = folder_of(tmp_path / ".hidden" / "x", BASE)
    other = folder_of(tmp_path / "y", {**BASE, ".DS_Store": "noise", ".git/config": "noise"})
    assert files.digest(plain) == files.digest(other)


def test_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert files.digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_link_shares_the_bytes(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "source", BASE)
    files.link(source, tmp_path / "run" / "target")
    for name in BASE:
        assert (tmp_path / "run" / "target" / name).samefile(source / name)
    files.link(source / "a.txt", tmp_path / "run" / "one.txt")
    assert (tmp_path / "run" / "one.txt").samefile(source / "a.txt")
    assert listing(tmp_path / "run") == {"one.txt", "target", "target/a.txt", "target/sub", "target/sub/b.txt"}


def test_link_replaces_its_target(tmp_path: Path) -> None:
    files.link(folder_of(tmp_path / "old", {"old": "1"}), tmp_path / "target")
    files.link(folder_of(tmp_path / "new", {"new": "2"}), tmp_path / "target")
    assert listing(tmp_path / "target") == {"new"}
    assert (tmp_path / "old" / "old").read_text() == "1"


def test_link_follows_symbolic_links(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "cache", {"blobs/123": "weights"})
    (source / "snapshot").mkdir()
    (source / "snapshot" / "model.bin").symlink_to(Path("..") / "blobs" / "123")
    files.link(source / "snapshot", tmp_path / "elsewhere" / "deep" / "model")
    assert (tmp_path / "elsewhere" / "deep" / "model" / "model.bin").read_text() == "weights"


def test_others_can_read_written_files(tmp_path: Path) -> None:
    """The temporary folder is the owner's alone; what comes out of it must not be."""
    files.write_json(tmp_path / "a.json", {})
    with files.replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
    (tmp_path / "plain.json").write_text(json.dumps({}))
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "plain.json").stat().st_mode
    assert (tmp_path / "folder").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_is_gathered_is_not_copied(tmp_path: Path) -> None:
    sources = {name: folder_of(tmp_path / f"model-{name}", {"weights": name}) for name in ("a", "b")}
    files.gather(sources, tmp_path / "all")
    for name, source in sources.items():
        assert (tmp_path / "all" / name / "weights").samefile(source / "weights")
