"""Files that are whole or absent: everything is written beside its place and renamed into it."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from automixalign.system import shortages
from automixalign.system.errors import AutoMixAlignError

_CHUNK = 1 << 20


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` to write a file or folder at; it becomes `path` if all went well.

    Raises:
        StorageError: the disk is full; like every named error raised meanwhile, it speaks of `path`.
    """
    with shortages.name_full_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            try:
                with shortages.name_full_disk(temporary):
                    yield temporary
            except AutoMixAlignError as error:
                error.args = tuple(str(part).replace(str(temporary), str(path)) for part in error.args)
                raise
            if path.is_dir() and not path.is_symlink() and temporary.exists():
                shutil.rmtree(path)
            temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write JSON that a person can read; NaN and infinity are refused, for they are not JSON."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON document a line; NaN and infinity are refused."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[Any]:
    """Read one JSON document a line."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file, with sums by which a changed byte is noticed."""
    with replacing(path) as temporary, table_writer(temporary, table.schema) as writer:
        writer.write_table(table)


def table_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer of such a file for tables that come one after the other; it stands at its place at once."""
    return pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file, or some of its columns, and see that no byte of them has changed."""
    return pq.read_table(path, columns=columns, page_checksum_verification=True)


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes, or of a folder's relative names and bytes; hidden files do not count."""
    total = hashlib.sha256()
    if path.is_file():
        _feed(total, path)
        return total.hexdigest()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        name = file.relative_to(path)
        if not any(part.startswith(".") for part in name.parts):
            total.update(f"{name.as_posix()}\0{file.stat().st_size}\0".encode())
            _feed(total, file)
    return total.hexdigest()


def _feed(total: "hashlib._Hash", file: Path) -> None:
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            total.update(chunk)


def link(source: Path, target: Path) -> None:
    """Make a file or folder appear at `target` too, by hard links where the file system allows them."""
    with replacing(target) as temporary:
        if source.is_dir():
            shutil.copytree(source, temporary, copy_function=_link_or_copy)
        else:
            _link_or_copy(str(source), str(temporary))


def gather(sources: Mapping[str, Path], target: Path) -> None:
    """Bring files or folders together in the folder `target`, each under its name, as `link` does."""
    with replacing(target) as temporary:
        temporary.mkdir()
        for name, source in sources.items():
            link(source, temporary / name)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(Path(source).resolve(), target)  # a hard link to a symbolic link would not follow it
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)
