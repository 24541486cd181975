"""Open data files for reading, compressed or not."""

import codecs
import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from automixalign.config.sources import COMPRESSIONS
from automixalign.system.errors import DataError

MAX_LINE_BYTES = 64 << 20
"""The largest line, and the largest row of a JSON array. A longer one is not read into memory."""

_BUFFER_BYTES = 1 << 20
"""Each filling of the buffer lets another thread run Python, and waits for it afterwards."""
_CODECS = dict(zip(COMPRESSIONS, ("gzip", "zstd"), strict=True))
_GZIP_START = b"\x1f\x8b"


@contextmanager
def naming(name: str, kind: str) -> Iterator[None]:
    """Name the file where reading it fails.

    Args:
        name: the file, for the message.
        kind: what the file should be, for the message.

    Raises:
        DataError: in place of every error of the operating system, of pyarrow and of a decoder.
    """
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{name}: not a readable {kind}: {error}") from error


def open_bytes(path: Path) -> io.BufferedReader:
    """Open a file from its start; reading decompresses it.

    Raises:
        OSError: it cannot be opened, or is not compressed as its name says. Reading raises it where a
            compressed file ends in the middle.
    """
    codec = _CODECS.get(path.suffix.lower())
    if codec is None:
        return io.BufferedReader(io.FileIO(path), _BUFFER_BYTES)
    if not path.stat().st_size:
        raise OSError("the compressed file is empty")
    if codec == "gzip":
        with path.open("rb") as file:
            if file.read(len(_GZIP_START)) != _GZIP_START:
                raise OSError(f"its content is not gzip, although its name ends in {path.suffix}")
    return io.BufferedReader(pa.input_stream(path, compression=codec), _BUFFER_BYTES)


@contextmanager
def open_text(path: Path) -> Iterator[io.BufferedReader]:
    """Open a text file after its byte order mark, which editors on Windows write.

    Raises:
        ValueError: the text is UTF-16.
    """
    with open_bytes(path) as stream:
        start = stream.peek(3)
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ValueError("its text is UTF-16; save it as UTF-8")
        if start.startswith(codecs.BOM_UTF8):
            stream.read(3)
        yield stream


@contextmanager
def open_table(path: Path) -> Iterator[pa.NativeFile]:
    """Open a file that is read at any place; a compressed one is decompressed to a temporary file."""
    if path.suffix.lower() not in _CODECS:
        with pa.memory_map(str(path)) as file:
            yield file
        return
    with tempfile.NamedTemporaryFile() as copy:
        with open_bytes(path) as stream:
            shutil.copyfileobj(stream, copy)
        copy.flush()
        with pa.memory_map(copy.name) as file:
            yield file


def read_lines(stream: io.BufferedReader) -> Iterator[bytes]:
    """Yield the lines of a file. Of a line that is too long, only `MAX_LINE_BYTES` + 1 bytes are yielded."""
    while line := stream.readline(MAX_LINE_BYTES + 1):
        yield line
        while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = stream.readline(MAX_LINE_BYTES + 1)


def decode(line: bytes) -> str:
    """Decode a line.

    Raises:
        ValueError: it is too long, or not UTF-8.
    """
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"the line is longer than {MAX_LINE_BYTES >> 20} MiB")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error}); save the file as UTF-8") from error
