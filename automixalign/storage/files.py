"""Write files and folders whole or not at all: to a temporary sibling that is then renamed."""

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from automixalign.system import shortages
from automixalign.system.errors import AutoMixAlignError

_CHUNK_BYTES = 1 << 20


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write a file or folder to; it becomes `path` if no error is raised.

    Raises:
        StorageError: the disk is full. Messages of named errors contain `path`, not the temporary path.
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
            _apply_umask(temporary)
            if path.is_dir() and not path.is_symlink() and temporary.exists():
                shutil.rmtree(path)
            temporary.replace(path)


def _apply_umask(path: Path) -> None:
    """Give new files the permissions that the user's umask leaves: safetensors lets only the owner read."""
    probe = path.with_name(".umask")  # asking for the umask would change it for a moment, in all threads
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    for file in [path] if path.is_file() else list_files(path, hidden=True):
        status = file.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
            file.chmod(mode)


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write indented JSON; NaN and infinity are refused, because they are not JSON."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON document per line; NaN and infinity are refused."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[Any]:
    """Read one JSON document per line."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file with checksums, which reveal a changed byte."""
    with replacing(path) as temporary, table_writer(temporary, table.schema) as writer:
        writer.write_table(table)


def table_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a Parquet file to write several tables; it has checksums, and is visible at `path` at once."""
    return pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file, or some of its columns, and verify the checksums."""
    return pq.read_table(path, columns=columns, page_checksum_verification=True)


def list_files(folder: Path, hidden: bool = False) -> list[Path]:
    """List the files below a folder in order; none if the folder does not exist.

    Args:
        folder: the folder.
        hidden: include names that begin with a dot, and files in folders with such names.

    Raises:
        OSError: a folder cannot be read. A list without its files would be wrong.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    paths: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        if not hidden:
            folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [Path(parent, name) for name in names if hidden or not name.startswith(".")]
    return sorted(path for path in paths if path.is_file())


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes, or of a folder's relative names and bytes; hidden files do not count."""
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    total = hashlib.sha256()
    for file in list_files(path):
        total.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                total.update(chunk)
    return total.hexdigest()


def link(source: Path, target: Path) -> None:
    """Copy a file or folder to `target`, by hard links if the file system allows them."""
    with replacing(target) as temporary:
        if source.is_dir():
            shutil.copytree(source, temporary, copy_function=_link_or_copy)
        else:
            _link_or_copy(str(source), str(temporary))


def gather(sources: Mapping[str, Path], target: Path) -> None:
    """Link files or folders into the folder `target`, each under its name, as `link` does."""
    with replacing(target) as temporary:
        temporary.mkdir()
        for name, source in sources.items():
            link(source, temporary / name)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(Path(source).resolve(), target)  # a hard link to a symbolic link would not follow it
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)
